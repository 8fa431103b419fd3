"""Accepted cases as training data: two folders that ``openmedlab finetune`` takes.

``images/NAME.nii.gz`` and ``labels/NAME.nii.gz`` lie on the same grid; nothing of the source
file's header, which may name the patient, is needed or kept. Names are in the labels' sidecar.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import ReadError, SessionError, WriteError
from napari_openmedlab.geometry.frames import ras_lps
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.io.api import write
from napari_openmedlab.io.atomic import sentence, staging
from napari_openmedlab.io.sidecar import LabelInfo

__all__ = ["CLASSES", "IMAGES", "LABELS", "add_pair", "write_scan"]

IMAGES, LABELS, CLASSES = "images", "labels", "classes.json"


def add_pair(
    folder: str | Path,
    name: str,
    volume: Volume,
    labels: NDArray[Any],
    objects: Mapping[int, LabelInfo],
) -> tuple[Path, Path]:
    """Add a scan and its labels to a folder of training data; the pair of that name is replaced.

    Parameters
    ----------
    folder : path
        Made if missing.
    name : str
        Of the case; the file name.
    volume : Volume
    labels : ndarray of int, shape of the volume
    objects : mapping of int to LabelInfo
        ``classes.json`` keeps one value for each name over all pairs; the labels are written
        with those values.

    Returns
    -------
    image, labels : Path

    Raises
    ------
    SessionError
        If the labels are empty.
    WriteError
        If it can't be written.
    ReadError
        If ``classes.json`` is none of ours.
    """
    root = Path(folder)
    present = {v: i.name for v, i in objects.items() if (labels == v).any()}
    if not present:
        raise SessionError(f"case '{name}' has no mask to learn from")
    try:
        for part in (root / IMAGES, root / LABELS):
            part.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(sentence(error, root), root) from error
    classes = _classes(root, present.values())
    values = {name: value for value, name in classes.items()}
    stored = np.zeros(labels.shape, np.uint16 if max(classes) > 255 else np.uint8)
    for value, structure in present.items():
        stored[labels == value] = values[structure]
    scan = np.asarray(volume.array)
    image, mask = root / IMAGES / f"{name}.nii.gz", root / LABELS / f"{name}.nii.gz"
    with staging(image.parent) as stage:
        write_scan(stage / image.name, scan, volume)
    bare = replace(volume, source=None)
    infos = {values[i.name]: i for v, i in objects.items() if v in present}
    write(mask, stored, bare, objects=infos)
    with staging(root) as stage:
        text = json.dumps({str(value): each for value, each in sorted(classes.items())}, indent=1)
        (stage / CLASSES).write_text(text, encoding="utf-8")
    return image, mask


def _classes(root: Path, names: Any) -> dict[int, str]:
    """Return the values of all structures in the folder, new ones added behind."""
    path = root / CLASSES
    known: dict[int, str] = {}
    if path.exists():
        try:
            known = {int(v): str(n) for v, n in json.loads(path.read_text("utf-8")).items()}
        except (OSError, ValueError, AttributeError) as error:
            raise ReadError(f"{path} is no list of classes: {error}", path) from error
    for name in sorted(set(names) - set(known.values()), key=str.casefold):
        known[max(known, default=0) + 1] = name
    return known


def write_scan(path: Path, array: NDArray[Any], volume: Volume) -> None:
    """Write an array (z, y, x) as NIfTI on the volume's grid, with a header of its own.

    Parameters
    ----------
    path : Path
        ``.nii`` or ``.nii.gz``; overwritten.
    array : ndarray, shape of the volume
    volume : Volume
        Lends its grid, nothing else.
    """
    import nibabel

    grid = volume.geometry
    affine = ras_lps(grid.affine)[:, [2, 1, 0, 3]]
    kind = nibabel.Nifti2Image if max(grid.shape) > 32767 else nibabel.Nifti1Image
    if array.dtype.kind == "b" or array.dtype == np.float16:
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.uint8)
    image = kind(np.asarray(array).transpose(2, 1, 0), affine)
    code = 1 if grid.frame == "patient" else 2
    image.set_sform(affine, code)
    if not grid.is_sheared:
        image.set_qform(affine, code)
    image.header.set_xyzt_units({"mm": "mm", "um": "micron"}.get(grid.unit, "unknown"))
    image.to_filename(path)
