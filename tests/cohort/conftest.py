"""A cohort of small torsos with one broken file, a library with two templates, a localizer."""

from __future__ import annotations

import proportional_localizer
import pytest
from small_torsos import save, save_dicom, torso

from napari_openmedlab.cohort.library import Library
from napari_openmedlab.cohort.marks import marks_from_labels
from napari_openmedlab.cohort.run import Plan
from napari_openmedlab.cohort.settings import Settings
from napari_openmedlab.io.api import read
from napari_openmedlab.models import catalogue


@pytest.fixture
def localizer(monkeypatch):
    """The proportional localizer in the catalogue, as another package would register it."""
    monkeypatch.setattr(catalogue, "entry_points", proportional_localizer.points)
    monkeypatch.setattr(proportional_localizer.Proportional, "loaded", 0)
    return proportional_localizer.Proportional


@pytest.fixture(scope="session")
def library_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library") / "templates"
    library = Library.create(folder)
    for seed, size in ((1, 1.0), (2, 0.95)):
        image, labels = torso(seed, size)
        path = save(tmp_path_factory.mktemp("marked") / f"scan{seed}.nii.gz", image)
        volume = read(path)
        assert volume.geometry.codes == "IPL"
        library.add(volume, marks_from_labels(labels, {1: "liver", 2: "kidney"}, volume.geometry))
    return folder


@pytest.fixture(scope="session")
def _scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    for seed, size in ((11, 1.0), (12, 0.9)):
        save(folder / f"patient{seed}" / "ct.nii.gz", torso(seed, size)[0])
    save_dicom(folder / "dicom" / "series", torso(13)[0])
    (folder / "broken.nii.gz").write_bytes(b"\x1f\x8b no scan at all")
    (folder / "notes.txt").write_text("not a scan")
    return folder


@pytest.fixture
def scans(_scans, tmp_path):
    """A copy of four cases: a DICOM series, two NIfTI files, a broken one."""
    import shutil

    return shutil.copytree(_scans, tmp_path / "scans")


@pytest.fixture
def plan(scans, library_folder, localizer, tmp_path):
    library = Library.open(library_folder)
    settings = Settings("proportional", engine="built-in", margin_mm=6.0)
    return Plan(scans, tmp_path / "out", library.templates(), settings, library_folder)
