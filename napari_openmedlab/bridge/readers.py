"""Opening scans and label maps by napari's File menu, drag and drop, and ``viewer.open``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from napari_openmedlab.bridge.layers import LayerData, labels_to_layer_data, volume_to_layer_data
from napari_openmedlab.errors import ReadError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.io.choices import ImageChoice

__all__ = ["PATTERNS", "get_reader", "read_layers"]

logger = logging.getLogger(__name__)

PATTERNS = (
    "*.nii",
    "*.nii.gz",
    "*.nrrd",
    "*.nhdr",
    "*.mha",
    "*.mhd",
    "*.dcm",
    "*.dicom",
    "*.ima",
    "*.zarr",
)
"""File names the manifest claims. Plain TIFF is left to napari: every microscopist's viewer
would ask which reader to take. A TIFF opens with its voxel size through the menu command, a
folder of TIFF slices by itself."""

_NIFTI_LABEL = 1002  # NIFTI_INTENT_LABEL, nifti1.h
_NOTHING: list[Any] = [(None,)]  # npe2's word for "read, and there is no layer to add"

Choose: TypeAlias = Callable[[Path, Sequence[ImageChoice]], Sequence[ImageChoice]]


def get_reader(path: str | list[str]) -> Callable[[Any], list[Any]] | None:
    """Return the reader if the path is one of ours, else ``None`` (npe2 reader command).

    Several paths (napari's "open as stack") are ours if they are slices of one DICOM folder.
    """
    from napari_openmedlab.io import dicom, ome_zarr, tiff

    paths = [Path(p) for p in (path if isinstance(path, list) else [path])]
    if len(paths) > 1:
        together = len({p.parent for p in paths}) == 1 and all(dicom.claims(p) for p in paths)
        return _read_first if together else None
    only = paths[0]
    if not only.is_dir():
        return read_layers
    return read_layers if any(m.claims(only) for m in (ome_zarr, dicom, tiff)) else None


def _read_first(paths: list[str]) -> list[Any]:
    """Read the series that the first of several slices belongs to."""
    return read_layers(paths[0])


def read_layers(path: str | list[str], choose: Choose | None = None) -> list[Any]:
    """Read a scan or label map as napari layers.

    Parameters
    ----------
    path : str
        Whatever :func:`napari_openmedlab.read` takes.
    choose : callable, optional
        Picks among several images in the file or folder. Default: a small dialog if napari has
        a window, else the largest image, with a warning that names the others.

    Returns
    -------
    list of LayerData
        A labels layer if the file says that it holds labels (a sidecar of ours, NIfTI's label
        intent, ``.seg.nrrd``); else an image layer. Nothing if the user cancelled the choice.

    Raises
    ------
    ReadError
        With a sentence that napari shows as a notification; the viewer goes on.
    """
    from napari_openmedlab.io import api

    file = Path(path[0] if isinstance(path, list) else path)
    found = api.list_images(file)
    if len(found) < 2:
        return [_layer_of(file, api.read(file))]
    chosen = (choose or _default_choice)(file, found)
    return [_layer_of(file, api.read(file, series=c.key)) for c in chosen] or _NOTHING


def _layer_of(file: Path, volume: Volume) -> LayerData:
    _tell(volume)
    if not _is_label_file(file, volume):
        return volume_to_layer_data(volume)
    from napari_openmedlab.io import api

    try:
        labels, objects = api.read_labels(file)
    except ReadError as error:
        logger.warning("shown as an image: %s", error)
        return volume_to_layer_data(volume)
    return labels_to_layer_data(labels.array, labels, objects, volume.name)


def _is_label_file(file: Path, volume: Volume) -> bool:
    from napari_openmedlab.io.sidecar import read_objects

    if file.name.lower().endswith(".seg.nrrd") or (file.is_file() and read_objects(file)):
        return True
    source = volume.source
    if source is None or source.kind != "nifti":
        return False
    try:
        return int(source.header["intent_code"]) == _NIFTI_LABEL
    except (KeyError, TypeError, IndexError, ValueError):
        return False


def _tell(volume: Volume) -> None:
    """Show what the reader found worth saying."""
    from napari.utils.notifications import show_info

    for note in volume.notes:
        show_info(f"{volume.name}: {note}")


def _default_choice(file: Path, found: Sequence[ImageChoice]) -> Sequence[ImageChoice]:
    import napari
    from napari.utils.notifications import show_warning

    viewer = napari.current_viewer()
    if viewer is not None:
        from napari_openmedlab.bridge.choosing import ask

        return ask(file, found)
    largest = max(found, key=_voxels)
    others = ", ".join(c.title for c in found if c is not largest)
    show_warning(f"{file.name} holds {len(found)} images; the largest was opened, not: {others}")
    return [largest]


def _voxels(choice: ImageChoice) -> int:
    count = 1
    for n in choice.shape:
        count *= n
    return count
