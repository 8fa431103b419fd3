"""Several series in a folder, several volumes in a series: choose, never guess."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_factory import CORONAL, ct_slice, phantom, save, write_series

from napari_openmedlab.errors import ReadError
from napari_openmedlab.io import dicom


@pytest.fixture
def two_series(tmp_path):
    write_series(tmp_path, phantom(seed=0), SeriesNumber=2, SeriesInstanceUID="1.2.30.1")
    write_series(
        tmp_path,
        phantom((5, 8, 10), seed=1),
        SeriesNumber=10,
        SeriesInstanceUID="1.2.31.7",
        SeriesDescription="Lung",
        prefix="B",
    )
    return tmp_path


def test_several_series_are_listed_and_none_is_guessed(two_series):
    pattern = r"(?s)2 volumes.*1: Abdomen 3.0.*7 slices of 8 x 10.*1\.2\.30\.1.*2: Lung.*5 slices"
    with pytest.raises(ReadError, match=pattern):
        dicom.read(two_series)


def test_choices_give_key_title_shape_and_detail(two_series):
    first, second = dicom.list_images(two_series)
    assert (first.key, first.title, first.shape) == ("1.2.30.1", "Abdomen 3.0", (7, 8, 10))
    assert (second.key, second.title, second.shape) == ("1.2.31.7", "Lung", (5, 8, 10))
    assert "CT" in second.detail


@pytest.mark.parametrize("series", ["1.2.31.7", "1.2.31", "2"])
def test_a_series_is_chosen_by_uid_prefix_or_number(two_series, series):
    assert dicom.read(two_series, series=series).name == "Lung"


def test_ambiguous_prefix_lists_with_the_numbers_that_work(two_series):
    with pytest.raises(ReadError, match=r"(?s)2 volumes.*2: Lung"):
        dicom.read(two_series, series="1.2.3")


def test_unknown_series_and_index_say_what_there_is(two_series):
    with pytest.raises(ReadError, match=r"(?s)no series '9\.9'.*Lung"):
        dicom.read(two_series, series="9.9")
    with pytest.raises(ReadError, match=r"volume 2 was asked for.*volumes 0 to 1"):
        dicom.read(two_series, index=2)


def test_index_counts_from_zero(two_series):
    assert dicom.read(two_series, index=1).name == "Lung"


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        ({"EchoTime": lambda k: 5.0 if k < 7 else 12.0}, "echo 12"),
        ({"TemporalPositionIdentifier": lambda k: 1 + k // 7}, "time point 2"),
        ({"AcquisitionNumber": lambda k: 1 + k // 7}, "acquisition 2"),
        ({"ImageType": lambda k: ["ORIGINAL", "PRIMARY", "MP"[k // 7]]}, "ORIGINAL/PRIMARY/P"),
        ({"DiffusionBValue": lambda k: 0.0 if k < 7 else 800.0}, "b-value 800"),
    ],
)
def test_volumes_that_share_places_are_told_apart_by_their_tags(tmp_path, tags, words):
    pixels = phantom((14, 8, 10))
    write_series(tmp_path, pixels, steps=[*range(7), *range(7)], **tags)
    titles = [c.title for c in dicom.list_images(tmp_path)]
    assert len(titles) == 2
    assert any(words in title for title in titles)
    for index, half in enumerate((pixels[:7], pixels[7:])):
        parts = [dicom.read(tmp_path, index=i).array[::-1] for i in range(2)]
        assert any(np.array_equal(p, half.astype(int) - 1024) for p in parts), index


def test_volumes_without_telling_tags_are_dealt_by_instance_number(tmp_path):
    pixels = phantom((14, 8, 10))
    write_series(tmp_path, pixels, steps=[*range(7), *range(7)], InstanceNumber=lambda k: k + 1)
    second = dicom.read(tmp_path, series="1.2.3.4.5#2")
    np.testing.assert_array_equal(second.array[::-1], pixels[7:].astype(int) - 1024)


def test_echo_and_phase_together_give_four_volumes(tmp_path):
    pixels = phantom((20, 8, 10))
    write_series(
        tmp_path,
        pixels,
        steps=list(range(5)) * 4,
        EchoTime=lambda k: 5.0 if k < 10 else 12.0,
        ImageType=lambda k: ["ORIGINAL", "PRIMARY", "MP"[(k // 5) % 2]],
    )
    assert [c.shape for c in dicom.list_images(tmp_path)] == [(5, 8, 10)] * 4


def test_times_that_differ_with_every_slice_do_not_split_a_volume(tmp_path):
    write_series(
        tmp_path,
        phantom(),
        AcquisitionTime=lambda k: f"1200{k:02d}",
        AcquisitionNumber=lambda k: k + 1,
    )
    assert len(dicom.list_images(tmp_path)) == 1


def test_localizer_and_other_orientations_are_volumes_of_their_own(tmp_path):
    write_series(tmp_path, phantom())
    write_series(tmp_path, phantom((1, 8, 10)), orientation=CORONAL, prefix="C")
    write_series(
        tmp_path,
        phantom((1, 8, 10)),
        origin=(0, 0, 500.0),
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
        prefix="L",
    )
    titles = {c.title for c in dicom.list_images(tmp_path)}
    assert titles == {
        "Abdomen 3.0, axial",
        "Abdomen 3.0, coronal",
        "Abdomen 3.0, localizer axial",
    }
    assert dicom.read(tmp_path, index=0).array.shape == (7, 8, 10)


def test_a_file_of_a_split_series_opens_the_volume_it_belongs_to(tmp_path):
    write_series(tmp_path, phantom())
    [coronal] = write_series(tmp_path, phantom((1, 8, 10)), orientation=CORONAL, prefix="C")
    assert dicom.read(coronal).array.shape == (8, 1, 10)


def test_files_copied_twice_are_counted_once_and_said(tmp_path):
    for path in write_series(tmp_path, phantom()):
        (tmp_path / f"copy-{path.name}").write_bytes(path.read_bytes())
    volume = dicom.read(tmp_path)
    assert volume.array.shape == (7, 8, 10)
    assert any("second time" in note for note in volume.notes)


def test_dicomdir_stands_for_its_folder(tmp_path):
    write_series(tmp_path / "IMAGES", phantom())
    directory = ct_slice(phantom()[0], None)
    directory.SOPClassUID = "1.2.840.10008.1.3.10"
    save(directory, tmp_path / "DICOMDIR")
    assert dicom.claims(tmp_path / "DICOMDIR")
    assert dicom.read(tmp_path / "DICOMDIR").array.shape == (7, 8, 10)
    assert dicom.read(tmp_path).array.shape == (7, 8, 10)


def test_series_without_uid_are_kept_apart_by_number(tmp_path):
    write_series(tmp_path, phantom(), SeriesInstanceUID="", SeriesNumber=3)
    write_series(tmp_path, phantom(), SeriesInstanceUID="", SeriesNumber=4, prefix="B")
    assert [c.key for c in dicom.list_images(tmp_path)] == ["series-3", "series-4"]
