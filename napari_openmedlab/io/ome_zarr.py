"""OME-Zarr images (NGFF 0.4 and 0.5; Zarr 2 and 3) to volumes, lazily.

* Voxels keep their order (z, y, x) and frame ``"image"``; an image without z is one slice.
* Channel and time are chosen by ``index``, several images (bioformats2raw layout) by
  ``series``; nothing is guessed.
* Scale and translation become the affine, lengths in um. Without a scale or a unit for every
  spatial axis the unit is ``"pixel"`` and a note says so.
* Images of 512 MB and more are dask arrays over the store; smaller ones are read at once, so
  damage is found on opening. The smaller levels of the pyramid are always dask arrays, in
  ``Volume.info["levels"]``.

References
----------
.. [1] J. Moore et al., "OME-NGFF", https://ngff.openmicroscopy.org/0.5/ (and 0.4).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from napari_openmedlab.errors import ReadError
from napari_openmedlab.geometry.frames import Reorientation
from napari_openmedlab.geometry.volume import Geometry, Unit, Volume
from napari_openmedlab.io.choices import ImageChoice
from napari_openmedlab.io.source import SourceGrid
from napari_openmedlab.io.tiff_scale import LENGTH_UM

__all__ = ["LAZY_BYTES", "Level", "claims", "list_images", "read"]

LAZY_BYTES = 512 * 1024**2
"""Images of this size or more stay on disk until they are looked at."""

_MARKS = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
_BROKEN = (ValueError, KeyError, TypeError, AttributeError, OSError, IndexError, RuntimeError)
_SHOWN = 20  # choices named in an error message


@dataclass(frozen=True, eq=False)
class Level:
    """One resolution of an image: a (z, y, x) dask array and its grid."""

    array: Any = field(repr=False)
    geometry: Geometry


@dataclass(frozen=True, eq=False)
class _Image:
    """A multiscale image of a store."""

    key: str
    name: str
    group: Any
    axes: tuple[str, ...]
    units: Mapping[str, str]
    multiscale: Mapping[str, Any]
    channels: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int, int]:
        """Shape (z, y, x) of the finest level."""
        extent = dict(zip(self.axes, self.shape, strict=True))
        return extent.get("z", 1), extent["y"], extent["x"]


def claims(path: Path) -> bool:
    """Return whether this is a folder that holds Zarr metadata or is called ``.zarr``."""
    if not path.is_dir():
        return False
    return path.suffix.lower() == ".zarr" or any((path / mark).is_file() for mark in _MARKS)


def list_images(path: Path) -> tuple[ImageChoice, ...]:
    """Return the (z, y, x) images of a store, one for each channel and time point.

    Raises
    ------
    ReadError
        If there is none or the metadata are broken.
    """
    return tuple(choice for choice, _, _ in _choices(_images(Path(path))))


def read(path: Path, *, series: str | None = None, index: int | None = None) -> Volume:
    """Read one (z, y, x) image of an OME-Zarr store.

    Parameters
    ----------
    path : Path
        The folder with the image's own metadata, or of several images.
    series : str, optional
        Key from :func:`list_images`, or the part of one before a slash: the image's group.
    index : int, optional
        Number (from 0) among the images, in the order of :func:`list_images`.

    Returns
    -------
    Volume
        ``info["levels"]`` holds the coarser resolutions as a tuple of :class:`Level`.

    Raises
    ------
    ReadError
        If there is no image, several to choose from, or broken metadata or data.
    """
    path = Path(path)
    choice, image, pick = _select(_choices(_images(path)), series, index, path)
    levels, notes = _levels(image, pick, path)
    finest = levels[0]
    lazy = math.prod(finest.geometry.shape) * finest.array.dtype.itemsize >= LAZY_BYTES
    as_stored = Reorientation((0, 1, 2), (False, False, False))
    return Volume(
        array=finest.array if lazy else np.asarray(finest.array),
        geometry=finest.geometry,
        source=SourceGrid("ome-zarr", path, finest.geometry, as_stored),
        name=choice.title,
        modality="",
        notes=notes,
        info={"format": "OME-Zarr", "levels": tuple(levels[1:]), "lazy": lazy},
    )


_Choice = tuple[ImageChoice, _Image, dict[str, int]]


def _choices(images: list[_Image]) -> list[_Choice]:
    """Return each image once for every channel, time point or other axis."""
    found: list[_Choice] = []
    for image in images:
        others = [a for a in image.axes if a not in "zyx"]
        extent = dict(zip(image.axes, image.shape, strict=True))
        for numbers in product(*(range(extent[a]) for a in others)):
            pick = dict(zip(others, numbers, strict=True))
            words = [_word(image, a, n) for a, n in pick.items() if extent[a] > 1]
            key = "/".join([*([image.key] if image.key else []), *map(str, numbers)]) or "0"
            title = ", ".join([image.name, *words])
            found.append(
                (ImageChoice(key, title, image.size, f"axes {''.join(image.axes)}"), image, pick)
            )
    return found


def _word(image: _Image, axis: str, number: int) -> str:
    if axis == "c" and number < len(image.channels) and image.channels[number]:
        return image.channels[number]
    return f"{ {'c': 'channel', 't': 'time'}.get(axis, axis) } {number}"


def _select(choices: list[_Choice], series: str | None, index: int | None, path: Path) -> _Choice:
    found = choices
    if series is not None:
        found = [c for c in choices if c[0].key == series]
        found = found or [c for c in choices if c[0].key.startswith(f"{series}/")]
        if not found:
            raise ReadError(f"{path} has no image '{series}'; it has{_listed(choices)}", path)
    if index is not None:
        if not 0 <= index < len(found):
            raise ReadError(
                f"image {index} was asked for, but {path} has images 0 to {len(found) - 1}:"
                f"{_listed(found)}",
                path,
            )
        return found[index]
    if len(found) > 1:
        raise ReadError(
            f"{path} holds {len(found)} images; choose one by its index (from 0):{_listed(found)}",
            path,
        )
    return found[0]


def _listed(choices: Sequence[_Choice]) -> str:
    lines = [
        f"\n  {n}: {c.title}, {' x '.join(map(str, c.shape))} (z, y, x)"
        for n, (c, _, _) in enumerate(choices[:_SHOWN])
    ]
    rest = len(choices) - _SHOWN
    return "".join(lines) + (f"\n  and {rest} more" if rest > 0 else "")


def _images(path: Path) -> list[_Image]:
    import zarr

    if not path.exists():
        raise ReadError(f"{path} does not exist", path)
    try:
        group = zarr.open_group(str(path), mode="r")
        attributes = _ome(group)
        if "multiscales" in attributes:
            return [_image(group, "", _stem(path), path)]
        if "plate" in attributes or "well" in attributes:
            raise ReadError(
                f"{path} is a plate of many images; open the folder of one field, for example "
                f"{path.name}/A/1/0",
                path,
            )
        if "bioformats2raw.layout" in attributes:
            keys = sorted((k for k in group.group_keys() if k.isdecimal()), key=int)
            images = [_image(group[k], k, f"{_stem(path)} {k}", path) for k in keys]
            if images:
                return images
    except ReadError:
        raise
    except _BROKEN as error:
        raise ReadError(
            f"{path} can't be read as OME-Zarr: {_reason(error)}; export it again", path
        ) from error
    raise ReadError(
        f"{path} is a Zarr store without OME-Zarr image metadata ('multiscales'); convert it to "
        "OME-Zarr or TIFF",
        path,
    )


def _ome(group: Any) -> dict[str, Any]:
    """Return the OME attributes: under ``ome`` in 0.5, at the top before."""
    attributes = dict(group.attrs)
    inner = attributes.get("ome")
    return dict(inner) if isinstance(inner, Mapping) else attributes


def _stem(path: Path) -> str:
    name = path.name
    for ending in (".zarr", ".ome"):
        name = name[: -len(ending)] if name.lower().endswith(ending) else name
    return name


def _reason(error: BaseException) -> str:
    text = str(error).strip("\"'") or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def _image(group: Any, key: str, name: str, path: Path) -> _Image:
    attributes = _ome(group)
    scales = attributes.get("multiscales")
    if not isinstance(scales, Sequence) or not scales or not scales[0].get("datasets"):
        raise ReadError(f"{path}: 'multiscales' lists no datasets; export the image again", path)
    multiscale = scales[0]
    array = _array(group, multiscale["datasets"][0], path)
    axes, units = _axes(multiscale, len(array.shape), path)
    channels = (attributes.get("omero") or {}).get("channels") or ()
    if array.dtype.kind not in "buif":
        raise ReadError(f"{path} holds {array.dtype} pixels, which can't be shown", path)
    return _Image(
        key=key,
        name=name,
        group=group,
        axes=axes,
        units=units,
        multiscale=multiscale,
        channels=tuple(str(c.get("label", "")) for c in channels),
        shape=tuple(int(n) for n in array.shape),
    )


def _array(group: Any, dataset: Mapping[str, Any], path: Path) -> Any:
    where = str(dataset.get("path", ""))
    try:
        array = group[where]
        shape = array.shape
    except _BROKEN as error:
        raise ReadError(
            f"{path}: the array '{where}' named by its metadata is missing or broken "
            f"({_reason(error)})",
            path,
        ) from error
    if not shape or min(shape) < 1:
        raise ReadError(f"{path}: the array '{where}' is empty", path)
    return array


def _axes(
    multiscale: Mapping[str, Any], ndim: int, path: Path
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return axis names in array order and the units of the spatial ones."""
    stated = multiscale.get("axes")
    if stated is None and ndim == 5:  # NGFF before 0.3 fixes the order
        stated = list("tczyx")
    entries = [{"name": a} if isinstance(a, str) else dict(a) for a in stated or ()]
    names = tuple(str(a.get("name", "")) for a in entries)
    spatial = [n for n in names if n in ("z", "y", "x")]
    if len(names) != ndim or len(set(names)) != ndim or not {"y", "x"} <= set(names):
        raise ReadError(
            f"{path}: its metadata name the axes {list(names)}, the array has {ndim} axes; "
            "axes with y and x are needed",
            path,
        )
    units = {n: str(a.get("unit") or "") for n, a in zip(names, entries, strict=True)}
    return names, {n: units[n].lower() for n in spatial}


def _levels(
    image: _Image, pick: Mapping[str, int], path: Path
) -> tuple[list[Level], tuple[str, ...]]:
    """Return the image at every resolution, finest first."""
    unit, factors, notes = _unit(image)
    levels: list[Level] = []
    for dataset in image.multiscale["datasets"]:
        stored = _array(image.group, dataset, path)
        if len(stored.shape) != len(image.axes):
            raise ReadError(f"{path}: '{dataset['path']}' has other axes than the rest", path)
        array = _zyx(stored, image.axes, pick, path)
        scale, shift = _transform(image, dataset, path)
        spacing, origin = (
            {a: values.get(a, default) * factors.get(a, 1.0) for a in "zyx"}
            for values, default in ((scale, scale.get("y", 1.0)), (shift, 0.0))
        )
        affine = np.zeros((4, 4))
        affine[2, 0], affine[1, 1], affine[0, 2] = spacing["z"], spacing["y"], spacing["x"]
        affine[:, 3] = origin["x"], origin["y"], origin["z"], 1.0
        levels.append(Level(array, Geometry(array.shape, affine, unit=unit, frame="image")))
    return levels, notes


def _unit(image: _Image) -> tuple[Unit, dict[str, float], tuple[str, ...]]:
    """Return the volume's unit, the factor to it for each axis, and notes."""
    spatial = [a for a in "zyx" if a in image.axes]
    factors = {a: LENGTH_UM.get(image.units[a]) for a in spatial}
    scaled = any(
        step.get("type") == "scale" for step in _steps(image, image.multiscale["datasets"][0])
    )
    known = {a: f for a, f in factors.items() if f is not None}
    if scaled and len(known) == len(spatial):
        known.setdefault("z", known["y"])
        return "um", known, ()
    what = "unit of its voxel size" if scaled else "voxel size"
    note = f"the image doesn't state the {what}: lengths and volumes are in voxels; set it"
    return "pixel", {}, (note,)


def _steps(image: _Image, dataset: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    own = dataset.get("coordinateTransformations") or ()
    return [*own, *(image.multiscale.get("coordinateTransformations") or ())]


def _transform(
    image: _Image, dataset: Mapping[str, Any], path: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Return scale and translation by axis: the level's own steps, then those of all levels."""
    scale, shift = np.ones(len(image.axes)), np.zeros(len(image.axes))
    for step in _steps(image, dataset):
        kind = step.get("type")
        if kind == "identity":
            continue
        values = step.get(str(kind))
        if kind not in ("scale", "translation") or not _numbers(values, len(image.axes)):
            raise ReadError(
                f"{path}: the transformation {dict(step)} is not a scale or translation of "
                f"{len(image.axes)} numbers",
                path,
            )
        vector = np.asarray(values, dtype=float)
        if kind == "scale":
            scale, shift = scale * vector, shift * vector
        else:
            shift = shift + vector
    spatial = [scale[i] for i, a in enumerate(image.axes) if a in "zyx"]
    if min(spatial) <= 0:
        raise ReadError(f"{path}: a voxel size of {min(spatial):g} makes no sense", path)
    return dict(zip(image.axes, scale, strict=True)), dict(zip(image.axes, shift, strict=True))


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, Sequence)
        and len(values) == count
        and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    )


def _zyx(stored: Any, axes: tuple[str, ...], pick: Mapping[str, int], path: Path) -> Any:
    """Return a (z, y, x) dask array of the chosen channel and time."""
    import dask.array as da

    chunks = getattr(stored, "chunks", None) or stored.shape
    array = da.from_array(_Guarded(stored, path), chunks=chunks, name=False, asarray=False)
    array = array[tuple(pick.get(a, slice(None)) for a in axes)]
    kept = [a for a in axes if a not in pick]
    array = array.transpose([kept.index(a) for a in "zyx" if a in kept])
    return array if "z" in kept else array[None]


class _Guarded:
    """A Zarr array whose read errors are sentences (for dask)."""

    def __init__(self, array: Any, path: Path) -> None:
        self.shape = tuple(array.shape)
        self.dtype = array.dtype
        self.ndim = len(self.shape)
        self._array = array
        self._path = path

    def __getitem__(self, key: Any) -> Any:
        try:
            return self._array[key]
        except _BROKEN as error:
            raise ReadError(
                f"{self._path} holds a damaged block of voxels ({_reason(error)}); copy or "
                "export the image again",
                self._path,
            ) from error
