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
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from napari_openmedlab.errors import ReadError
from napari_openmedlab.geometry.frames import Reorientation
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.io.choices import ImageChoice, position_of_choice
from napari_openmedlab.io.ome_zarr_levels import (
    BROKEN,
    SPACE,
    Level,
    StoredImage,
    array_of,
    levels_of,
    reason,
)
from napari_openmedlab.io.source import SourceGrid

__all__ = ["LAZY_BYTES", "Level", "claims", "list_images", "read"]

LAZY_BYTES = 512 * 1024**2
"""Images of this size or more stay on disk until they are looked at."""

_MARKS = ("zarr.json", ".zattrs", ".zgroup", ".zarray")


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


def read(
    path: Path,
    *,
    series: str | None = None,
    index: int | None = None,
    lazy_bytes: int | None = None,
) -> Volume:
    """Read one (z, y, x) image of an OME-Zarr store.

    Parameters
    ----------
    path : Path
        The folder with the image's own metadata, or of several images.
    series : str, optional
        Key from :func:`list_images`, or the part of one before a slash: the image's group.
    index : int, optional
        Number (from 0) among the images, in the order of :func:`list_images`.
    lazy_bytes : int, optional
        Images of this size or more stay on disk, instead of :data:`LAZY_BYTES`; 0: all.

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
    choices = _choices(_images(path))
    wanted = position_of_choice([c for c, _, _ in choices], series, index, path)
    choice, image, pick = choices[wanted]
    levels, notes = levels_of(image, pick, path)
    finest = levels[0]
    limit = LAZY_BYTES if lazy_bytes is None else lazy_bytes
    lazy = math.prod(finest.geometry.shape) * finest.array.dtype.itemsize >= limit
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


_Choice = tuple[ImageChoice, StoredImage, dict[str, int]]


def _choices(images: list[StoredImage]) -> list[_Choice]:
    """Return each image once for every channel, time point or other axis."""
    found: list[_Choice] = []
    for image in images:
        others = [a for a in image.axes if a not in SPACE]
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


def _word(image: StoredImage, axis: str, number: int) -> str:
    if axis == "c" and number < len(image.channels) and image.channels[number]:
        return image.channels[number]
    return f"{ {'c': 'channel', 't': 'time'}.get(axis, axis) } {number}"


def _images(path: Path) -> list[StoredImage]:
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
    except BROKEN as error:
        raise ReadError(
            f"{path} can't be read as OME-Zarr: {reason(error)}; export it again", path
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


def _image(group: Any, key: str, name: str, path: Path) -> StoredImage:
    attributes = _ome(group)
    scales = attributes.get("multiscales")
    if not isinstance(scales, Sequence) or not scales or not scales[0].get("datasets"):
        raise ReadError(f"{path}: 'multiscales' lists no datasets; export the image again", path)
    multiscale = scales[0]
    array = array_of(group, multiscale["datasets"][0], path)
    axes, units = _axes(multiscale, len(array.shape), path)
    channels = (attributes.get("omero") or {}).get("channels") or ()
    if array.dtype.kind not in "buif":
        raise ReadError(f"{path} holds {array.dtype} pixels, which can't be shown", path)
    return StoredImage(
        key=key,
        name=name,
        group=group,
        axes=axes,
        units=units,
        multiscale=multiscale,
        channels=tuple(str(c.get("label", "")) for c in channels),
        shape=tuple(int(n) for n in array.shape),
    )


def _axes(
    multiscale: Mapping[str, Any], ndim: int, path: Path
) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return axis names in array order and the units of the spatial ones."""
    stated = multiscale.get("axes")
    if stated is None and ndim == 5:  # NGFF before 0.3 fixes the order
        stated = list("tczyx")
    entries = [{"name": a} if isinstance(a, str) else dict(a) for a in stated or ()]
    names = tuple(str(a.get("name", "")) for a in entries)
    spatial = [n for n in names if n in SPACE]
    if len(names) != ndim or len(set(names)) != ndim or not {"y", "x"} <= set(names):
        raise ReadError(
            f"{path}: its metadata name the axes {list(names)}, the array has {ndim} axes; "
            "axes with y and x are needed",
            path,
        )
    units = {n: str(a.get("unit") or "") for n, a in zip(names, entries, strict=True)}
    return names, {n: units[n].lower() for n in spatial}
