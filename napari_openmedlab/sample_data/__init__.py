"""Small volumes the project made itself (``tools/make_samples.py``), loaded on first use.

Three samples, each with reference labels: a CT-like torso, an MR-like abdomen and a light-sheet
cube. Nothing in them comes from a patient or an animal. The liver lies on the patient's right,
so left and right can be told apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_openmedlab.errors import PromptError, ReadError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from napari_openmedlab.geometry.prompts import Point
    from napari_openmedlab.geometry.volume import Geometry, Volume

__all__ = [
    "ct_torso",
    "extreme_points",
    "image_path",
    "labels_path",
    "light_sheet_axons",
    "load",
    "mr_abdomen",
    "names",
    "prompts_path",
]

_FOLDER = Path(__file__).parent
_FILES = {
    "ct_torso": (".nii.gz", "CT"),
    "mr_abdomen": (".nii.gz", "MR"),
    "light_sheet_axons": (".tif", "LSFM"),
}


def names() -> tuple[str, ...]:
    """Return the names of the samples."""
    return tuple(_FILES)


def image_path(name: str) -> Path:
    """Return the file of a sample's image."""
    return _FOLDER / f"{name}{_known(name)[0]}"


def labels_path(name: str) -> Path:
    """Return the file of a sample's reference labels, on the image's grid."""
    return _FOLDER / f"{name}_labels{_known(name)[0]}"


def prompts_path(name: str) -> Path:
    """Return the prompts file of a sample, as a user would have clicked it.

    Raises
    ------
    ReadError
        If the sample has none (only ``ct_torso`` has).
    """
    path = _FOLDER / f"{name}_prompts.json"
    if not path.exists():
        raise ReadError(f"the sample '{name}' has no prompts file; 'ct_torso' has one", path)
    return path


def load(name: str) -> tuple[Volume, NDArray[Any], dict[int, str]]:
    """Return a sample: image, reference labels and the name of each label value.

    Parameters
    ----------
    name : str
        One of :func:`names`.

    Returns
    -------
    volume : Volume
        ``ct_torso``: 60 x 160 x 236 voxels of 4 x 1.6 x 1.6 mm in Hounsfield units.
        ``mr_abdomen``: 38 x 120 x 180 voxels of 5 x 2.1 x 2.1 mm with a bias field.
        ``light_sheet_axons``: 56 x 176 x 176 voxels of 4 x 2 x 2 um.
    labels : ndarray of int, shape of the volume, axes (z, y, x)
    names : dict of int to str

    Raises
    ------
    ReadError
        If there is no sample of that name.
    """
    from dataclasses import replace

    from napari_openmedlab.io.api import read, read_labels

    volume = replace(read(image_path(name)), name=name, modality=_known(name)[1])
    found, objects = read_labels(labels_path(name), like=volume)
    return volume, found.array, {value: info.name for value, info in objects.items()}


def extreme_points(
    labels: NDArray[Any], value: int, geometry: Geometry
) -> tuple[Point, Point, Point, Point, Point, Point]:
    """Return the six extreme points of one object of a label map.

    Parameters
    ----------
    labels : ndarray of int, shape ``geometry.shape``, axes (z, y, x)
    value : int
        The object's label value.
    geometry : Geometry

    Returns
    -------
    tuple of six (x, y, z)
        World points: first and last voxel along z, y and x (of several equally far out, the one
        nearest to their middle). In display order: superior, inferior, anterior, posterior,
        right, left.

    Raises
    ------
    PromptError
        If no voxel has that value.
    """
    import numpy as np

    from napari_openmedlab.geometry.prompts import as_point

    index = np.argwhere(labels == value)
    if not len(index):
        raise PromptError(f"no voxel of the label map has the value {value}")
    points = []
    for axis in range(3):
        for end in (index[:, axis].min(), index[:, axis].max()):
            there = index[index[:, axis] == end]
            gap = ((there - there.mean(axis=0)) ** 2).sum(axis=1)
            points.append(as_point(geometry.to_world(there[int(np.argmin(gap))])))
    a, b, c, d, e, f = points
    return a, b, c, d, e, f


def ct_torso() -> list[Any]:
    """Return the CT-like torso as napari layer data (image and hidden reference labels)."""
    return _layers("ct_torso")


def mr_abdomen() -> list[Any]:
    """Return the MR-like abdomen as napari layer data (image and hidden reference labels)."""
    return _layers("mr_abdomen")


def light_sheet_axons() -> list[Any]:
    """Return the light-sheet cube as napari layer data (image and hidden reference labels)."""
    return _layers("light_sheet_axons")


def _known(name: str) -> tuple[str, str]:
    if name not in _FILES:
        raise ReadError(f"there is no sample '{name}'; there are: {', '.join(_FILES)}")
    return _FILES[name]


def _layers(name: str) -> list[Any]:
    from napari_openmedlab.bridge.layers import labels_to_layer_data, volume_to_layer_data
    from napari_openmedlab.io.sidecar import LabelInfo
    from napari_openmedlab.session.objects import distinct_colour

    volume, labels, meaning = load(name)
    infos = {value: LabelInfo(text, distinct_colour(value)) for value, text in meaning.items()}
    reference = labels_to_layer_data(labels, volume, infos, f"{name} reference")
    # Hidden: the reference is there to compare with, not to give the answer away.
    reference[1]["visible"] = False
    return [volume_to_layer_data(volume), reference]
