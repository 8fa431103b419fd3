from __future__ import annotations

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

import napari_openmedlab as oml
from napari_openmedlab.errors import OpenMedLabError, ReadError
from napari_openmedlab.io.api import list_images


def nifti(path, shape=(4, 5, 6)):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), path)
    return path


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.nii.gz", b"", "is empty"),
        ("a.nrrd", b"", "is empty"),
        ("a.bin", b"", "is empty"),
        ("a.bin", b"<html><body>404</body></html>", "is a web page"),
        ("a.docx", b"PK\x03\x04" + bytes(600), "not a scan of a known format"),
        ("a.mha", b"ObjectType = Horse\n", r"a\.mha"),
        ("a.nrrd", b"NRRD0004\n", r"a\.nrrd"),
        ("a.tif", b"hello", r"a\.tif"),
        ("a.dcm", b"hello", r"a\.dcm"),
    ],
)
def test_a_file_that_is_no_scan_is_a_sentence_that_names_it(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    for call in (oml.read, list_images, oml.read_labels):
        with pytest.raises(ReadError, match=sentence) as caught:
            call(tmp_path / name)
        assert name in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(ReadError, match=r"none\.nii does not exist"):
        oml.read(tmp_path / "none.nii")


def test_folders_without_an_image_are_explained(tmp_path):
    with pytest.raises(ReadError, match=r"folder .* is empty"):
        oml.read(tmp_path)
    (tmp_path / "notes.txt").write_text("hello", encoding="utf-8")
    with pytest.raises(ReadError, match="holds no DICOM series"):
        oml.read(tmp_path)
    nifti(tmp_path / "b.nii.gz")
    with pytest.raises(ReadError, match=r"holds single scans; open one of them, b\.nii\.gz"):
        oml.read(tmp_path)


def test_a_file_nobody_may_read_is_a_sentence(tmp_path, monkeypatch):
    path = nifti(tmp_path / "a.nii")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(ReadError, match="no permission"):
        oml.read(path)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [(OSError(5, "Input/output error"), "Input/output error"), (MemoryError(), "free memory")],
)
def test_what_the_system_says_while_reading_is_a_sentence(tmp_path, monkeypatch, error, sentence):
    path = nifti(tmp_path / "a.nii")

    def fail(*args):
        raise error

    monkeypatch.setattr("napari_openmedlab.io.nifti.read_voxels", fail)
    with pytest.raises(ReadError, match=sentence):
        oml.read(path)


def test_paths_may_be_strings_and_hold_any_letters(tmp_path):
    folder = tmp_path / "Größe 肝臓"
    folder.mkdir()
    volume = oml.read(str(nifti(folder / "ä b.nii.gz")))
    assert volume.name == "ä b"
    for suffix in ("nii.gz", "nrrd", "mhd"):
        (mask, _) = oml.write(
            str(folder / f"é.{suffix}"), np.ones(volume.geometry.shape, int), volume
        )
        assert oml.read_labels(str(mask), like=volume)[0].array.all()


def test_each_format_is_known_by_its_content(tmp_path):
    bare = nifti(tmp_path / "a.nii").rename(tmp_path / "0001")
    assert oml.read(bare).info["format"] == "NIfTI"
    assert [c.shape for c in list_images(bare)] == [(4, 5, 6)]


def test_reading_imports_no_other_formats_library(tmp_path):
    code = (
        "import sys, napari_openmedlab as o; o.read(sys.argv[1]);"
        "print([m for m in ('SimpleITK', 'zarr', 'tifffile', 'dask') if m in sys.modules])"
    )
    path = nifti(tmp_path / "a.nii")
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_failure_is_one_of_ours(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.tif", "a.dcm", "a"):
        for size in (1, 100, 5000):
            (tmp_path / name).write_bytes(rng.bytes(size))
            with pytest.raises(OpenMedLabError):
                oml.read(tmp_path / name)
