"""Label maps to files: checked, brought to the grid of the source, written as a whole or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError, WriteError
from napari_openmedlab.geometry.labels import count_labels, smallest_label_dtype
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.io import sidecar
from napari_openmedlab.io.atomic import resolved_target, staging
from napari_openmedlab.io.sidecar import LabelInfo, ObjectRow
from napari_openmedlab.io.suffixes import safe_name, stem_of, suffix_of

__all__ = ["WRITABLE", "write"]

WRITABLE = (
    ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".tif", ".tiff", ".ome.tif", ".ome.tiff",
)  # fmt: skip
"""Suffixes labels can be written with."""

_SPREAD = {".mhd": (".raw", ".zraw"), ".nhdr": (".raw", ".raw.gz")}
_GREY = (0.7, 0.7, 0.7)


@dataclass(frozen=True)
class _Mask:
    """One file to be written: its target and the objects in it (value in file -> row)."""

    target: Path
    rows: tuple[ObjectRow, ...]
    only: int | None = None  # the one label value this file shows as 1


def write(
    path: Path,
    labels: NDArray[Any],
    volume: Volume,
    *,
    objects: Mapping[int, LabelInfo] | None = None,
    provenance: Mapping[str, Any] | None = None,
    one_file_per_object: bool = False,
) -> tuple[Path, ...]:
    """Write labels and their sidecars; see :func:`napari_openmedlab.io.api.write`."""
    labels = _checked(labels, volume)
    suffix = suffix_of(path)
    if suffix not in WRITABLE:
        raise WriteError(
            f"{path.name}: labels can't be written as '{suffix or 'a file without suffix'}'; end "
            f"the name in one of {', '.join(WRITABLE)}",
            path,
        )
    target = resolved_target(path)
    rows = _rows(labels, objects or {})
    masks = _split(target, rows) if one_file_per_object else (_Mask(target, rows),)
    for mask in masks:
        _protect_scan(mask.target, volume)
        resolved_target(mask.target)
    stored, geometry = _stored(labels, volume)
    written: list[Path] = []
    with staging(target.parent) as folder:
        for mask in masks:
            array = _values(stored, mask)
            _writer(suffix, volume)(folder / mask.target.name, array, geometry)
            beside = sidecar.sidecar_path(mask.target)
            text = sidecar.text(mask.target, geometry, mask.rows, provenance)
            (folder / beside.name).write_text(text, encoding="utf-8")
            written += [mask.target, beside]
    return tuple(written)


def _checked(labels: Any, volume: Volume) -> NDArray[Any]:
    """Return the labels as an array of non-negative integers on the volume's grid."""
    array = np.asarray(labels)
    if array.shape != volume.geometry.shape:
        raise GeometryError(
            f"labels of shape {array.shape} don't lie on the grid of '{volume.name}', which has "
            f"shape {volume.geometry.shape}; export them with the image they were made on"
        )
    if array.dtype.kind not in "biu":
        raise GeometryError(f"label values are whole numbers, these are {array.dtype}")
    if array.dtype.kind == "i" and int(array.min()) < 0:
        raise GeometryError(f"label values are 0 or more, these go down to {array.min()}")
    return array


def _rows(labels: NDArray[Any], objects: Mapping[int, LabelInfo]) -> tuple[ObjectRow, ...]:
    """Return a row for every named object and every value in the array, by value."""
    counts = count_labels(labels)
    unnamed = {value: LabelInfo(f"label {value}", _GREY) for value in counts}
    return tuple(
        ObjectRow(value, info, counts.get(value, 0))
        for value, info in sorted({**unnamed, **objects}.items())
        if value > 0
    )


def _split(target: Path, rows: tuple[ObjectRow, ...]) -> tuple[_Mask, ...]:
    """Return one mask for each object, with file names that differ on every system."""
    if not rows:
        raise WriteError("there is no object to write: mark one first", target)
    taken: set[str] = set()
    masks = []
    for row in rows:
        name = f"{stem_of(target)}_{safe_name(row.info.name)}"
        if name.casefold() in taken:
            name = f"{name}_{row.value}"
        while name.casefold() in taken:
            name += "_"
        taken.add(name.casefold())
        own = target.with_name(name + suffix_of(target))
        masks.append(_Mask(own, (ObjectRow(1, row.info, row.voxels),), only=row.value))
    return tuple(masks)


def _protect_scan(target: Path, volume: Volume) -> None:
    source = getattr(volume.source, "path", None)
    if source is not None and target.exists() and Path(source).exists():
        files = [target, *(target.with_name(stem_of(target) + s) for s in _spread(target))]
        if any(f.exists() and f.samefile(source) for f in files):
            raise WriteError(f"{target} is the scan itself; give the mask another name", target)


def _spread(target: Path) -> tuple[str, ...]:
    return _SPREAD.get(suffix_of(target), ())


def _stored(labels: NDArray[Any], volume: Volume) -> tuple[NDArray[Any], Geometry]:
    """Return labels and grid in the order of the source file, slowest axis first."""
    source = volume.source
    if source is None:
        return labels, volume.geometry
    stored, geometry = source.to_source(labels), source.geometry
    if source.kind != "nifti":
        return stored, geometry
    # A NIfTI's own order is (i, j, k), fastest first.
    turned = Geometry(
        geometry.shape[::-1], geometry.affine[:, [2, 1, 0, 3]], geometry.unit, geometry.frame
    )
    return stored.transpose(), turned


def _values(stored: NDArray[Any], mask: _Mask) -> NDArray[Any]:
    """Return what goes into the file: contiguous, in the smallest fitting integer type."""
    if mask.only is not None:
        return np.ascontiguousarray(stored == mask.only).view(np.uint8)
    largest = max((row.value for row in mask.rows if row.voxels), default=0)
    return np.ascontiguousarray(stored, dtype=smallest_label_dtype(largest))


def _writer(suffix: str, volume: Volume) -> Callable[[Path, NDArray[Any], Geometry], None]:
    """Return the function that writes one file; it gets the source's header if of its format."""
    kind = getattr(volume.source, "kind", "array")
    header = getattr(volume.source, "header", None)
    if suffix in (".nii", ".nii.gz"):
        from napari_openmedlab.io import nifti_labels

        own = header if kind == "nifti" else None
        return lambda path, array, grid: nifti_labels.write_labels(path, array, grid, own)
    if suffix in (".tif", ".tiff", ".ome.tif", ".ome.tiff"):
        from napari_openmedlab.io import tiff_labels

        return tiff_labels.write_labels
    from napari_openmedlab.io import itk

    own = header if kind == "itk" else None
    return lambda path, array, grid: itk.write_labels(path, array, grid, own)
