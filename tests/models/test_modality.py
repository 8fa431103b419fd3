"""Whether a scan is a CT is told from the file's word, else from its air."""

import numpy as np
import pytest

from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.modality import looks_like_ct


def _volume(lowest, modality="", frame="patient"):
    array = np.zeros((8, 6, 6), dtype=np.int16)
    array[:, 0] = lowest
    geometry = Geometry(array.shape, np.eye(4), frame=frame)
    return Volume(array, geometry, name="scan", modality=modality)


@pytest.mark.parametrize(
    ("lowest", "modality", "expected"),
    [
        (-1000, "", True),
        (0, "", False),
        (-200, "", False),
        (-32768, "", False),  # padding beyond an MR's field of view is no air
        (0, "CT", True),
        (-1000, "MR", False),
    ],
)
def test_air_tells_a_ct_from_what_is_none(lowest, modality, expected):
    assert looks_like_ct(_volume(lowest, modality)) is expected


def test_a_microscope_takes_no_ct():
    assert not looks_like_ct(_volume(-1000, frame="image"))
