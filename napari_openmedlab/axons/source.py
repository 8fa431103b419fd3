"""A volume that stays on disk: opened lazily, read block by block, told apart from others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError, ReadError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.io import api, ome_zarr, tiff
from napari_openmedlab.io.ome_zarr_levels import BROKEN, Level, reason
from napari_openmedlab.io.tiff_slices import Gaps, is_folder_of_slices, read_slices
from napari_openmedlab.session.fingerprint import fingerprint_of

__all__ = ["Address", "Source", "Spacing", "open_source", "source_of_array"]

Spacing = tuple[float, float, float]

_UM = {"um": 1.0, "mm": 1000.0}


@dataclass(frozen=True)
class Address:
    """What opens a source again, here or on another machine.

    Attributes
    ----------
    path : str
        Absolute.
    series : str or None
    index : int or None
        As ``io.api.read`` takes them.
    gaps : {"stop", "fill"}
        As :func:`.read_slices` takes it.
    """

    path: str
    series: str | None = None
    index: int | None = None
    gaps: Gaps = "stop"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"path": self.path, "series": self.series, "index": self.index, "gaps": self.gaps}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Address:
        """Return what :meth:`to_json` wrote."""
        index = stored.get("index")
        return cls(
            str(stored["path"]),
            stored.get("series"),
            None if index is None else int(index),
            cast("Gaps", stored.get("gaps", "stop")),
        )


@dataclass(frozen=True, eq=False)
class Source:
    """A (z, y, x) image of any size.

    Attributes
    ----------
    volume : Volume
        Its array may be lazy.
    levels : tuple of Level
        Coarser resolutions, finest first; empty if there are none.
    spacing : tuple of float or None
        Voxel size (z, y, x) in um; ``None`` if it is not known. It is never invented.
    address : Address or None
        ``None`` for an array that came from no file.
    """

    volume: Volume
    levels: tuple[Level, ...] = ()
    spacing: Spacing | None = None
    address: Address | None = None

    @property
    def name(self) -> str:
        """For the user."""
        return self.volume.name

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels (z, y, x)."""
        return self.volume.geometry.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the voxels."""
        kind: np.dtype[Any] = np.dtype(self.volume.array.dtype)
        return kind

    @property
    def whole(self) -> Box:
        """The box of all voxels."""
        return Box.whole(self.shape)

    def with_spacing(self, spacing: Sequence[float]) -> Source:
        """Return the source with a voxel size (z, y, x) in um stated by the user.

        Raises
        ------
        GeometryError
            If these are not three numbers above 0.
        """
        values = tuple(float(v) for v in spacing)
        if len(values) != 3 or not np.isfinite(values).all() or min(values) <= 0:
            raise GeometryError(f"a voxel size is three lengths above 0 in um, got {values}")
        return replace(self, spacing=(values[0], values[1], values[2]))

    def read(self, box: Box, outside: Literal["edge", "zero"] = "edge") -> NDArray[Any]:
        """Return the voxels of a box, which may reach beyond the volume.

        Parameters
        ----------
        box : Box
            Overlaps the volume on every axis, unless ``outside`` is ``"zero"``.
        outside : {"edge", "zero"}
            What lies beyond: the nearest voxel (all axes), or zeros above the first slice and
            below the last (y and x repeat their edge, as upstream does).

        Returns
        -------
        ndarray, ``box.shape``, native byte order
            bool becomes uint8; numbers that are none become 0.

        Raises
        ------
        ReadError
            If the voxels can't be read; the text says which box.
        """
        inside = box.clip(self.shape)
        if inside.is_empty:
            if outside == "zero":
                return np.zeros(box.shape, self.dtype.newbyteorder("="))
            raise GeometryError(f"the block {box} lies outside {self.name}, {self.shape}")
        values = self._cut(self.volume.array, inside)
        margins = [
            (a - p, q - b)
            for a, b, p, q in zip(inside.start, inside.stop, box.start, box.stop, strict=True)
        ]
        if outside == "zero":
            values = np.pad(values, [margins[0], (0, 0), (0, 0)])
            margins[0] = (0, 0)
        return np.pad(values, margins, mode="edge") if np.any(margins) else values

    def read_level(self, number: int, box: Box | None = None) -> NDArray[Any]:
        """Return a coarser level (0: the first of :attr:`levels`), or a box of it."""
        level = self.levels[number]
        return self._cut(level.array, box or Box.whole(level.geometry.shape))

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells this image from another, as plain JSON values; reads 27 small blocks.

        The path is no part of it: a volume may be moved.
        """
        return {
            "shape": list(self.shape),
            "dtype": self.dtype.name,
            "sampled_sha256": fingerprint_of(self.volume).sampled_sha256,
        }

    def _cut(self, array: Any, box: Box) -> NDArray[Any]:
        try:
            part = array[box.slices]
            # Never the default scheduler: on a cluster it would send the work around again.
            compute = getattr(part, "compute", None)
            values = np.asarray(compute(scheduler="synchronous") if compute else part)
        except ReadError as error:
            raise ReadError(f"{error} (voxels {_where(box)})", error.path) from error
        except BROKEN as error:
            raise ReadError(
                f"the voxels {_where(box)} of {self.name} can't be read: {reason(error)}"
            ) from error
        if values.dtype.kind == "b":
            return values.astype(np.uint8)
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
        return values


def open_source(
    path: str | Path,
    *,
    series: str | None = None,
    index: int | None = None,
    gaps: Gaps = "stop",
    spacing: Sequence[float] | None = None,
) -> Source:
    """Open a volume without reading it.

    Parameters
    ----------
    path : str or Path
        OME-Zarr (NGFF 0.4, 0.5), a folder of 2D TIFF slices, a TIFF, BigTIFF, OME-TIFF or ImageJ
        stack: these stay on disk. Any other file ``io.api.read`` takes is read whole.
    series : str, optional
    index : int, optional
        Which image, where there are several (channels, time points, stacks in a folder).
    gaps : {"stop", "fill"}
        What to do about missing or damaged slices of a folder.
    spacing : three floats, optional
        Voxel size (z, y, x) in um, instead of the file's.

    Raises
    ------
    ReadError
        If it can't be opened, or holds several images and none was chosen; the text lists them.
    """
    path = Path(path)
    if path.exists() and ome_zarr.claims(path):
        volume = ome_zarr.read(path, series=series, index=index, lazy_bytes=0)
    elif path.exists() and is_folder_of_slices(path):
        volume = read_slices(path, gaps, series=series, index=index)
    elif path.exists() and tiff.claims(path):
        volume = tiff.read(path, series=series, index=index, lazy_bytes=0)
    else:
        volume = api.read(path, series=series, index=index)
    volume = _as_stated(volume)
    address = Address(str(path.absolute()), series, index, gaps)
    source = Source(
        volume, tuple(volume.info.get("levels", ())), _spacing_um(volume.geometry), address
    )
    return source if spacing is None else source.with_spacing(spacing)


def source_of_array(
    array: Any,
    *,
    name: str,
    spacing: Sequence[float] | None = None,
    coarser: Sequence[Any] = (),
    address: Address | None = None,
) -> Source:
    """Return a source for arrays that are open already, for example those of a viewer's layer.

    Parameters
    ----------
    array : array-like, shape (z, y, x)
        NumPy, dask or Zarr.
    name : str
        For the user.
    spacing : three floats, optional
        Voxel size (z, y, x) in um; ``None`` if it is not known.
    coarser : sequence of array-like
        Coarser resolutions of the same extent, finest first.
    address : Address, optional
        The file the arrays came from.
    """
    shape = tuple(int(n) for n in array.shape)
    if len(shape) != 3:
        raise GeometryError(f"{name} has {len(shape)} axes; choose one (z, y, x) image of it")
    size = spacing or (1.0, 1.0, 1.0)
    three = (float(size[0]), float(size[1]), float(size[2]))
    unit: Literal["um", "pixel"] = "um" if spacing else "pixel"
    geometry = Geometry.from_spacing((shape[0], shape[1], shape[2]), three, unit=unit)
    levels = tuple(_level(each, geometry) for each in coarser)
    source = Source(Volume(array, geometry, name=name), levels, None, address)
    return source if spacing is None else source.with_spacing(spacing)


def _level(array: Any, finest: Geometry) -> Level:
    shape = tuple(int(n) for n in array.shape)
    ratio = [a / b for a, b in zip(finest.shape, shape, strict=True)]
    z, y, x = (s * r for s, r in zip(finest.spacing, ratio, strict=True))
    geometry = Geometry.from_spacing(
        (shape[0], shape[1], shape[2]), (z, y, x), unit=finest.unit, frame=finest.frame
    )
    return Level(array, geometry)


def _spacing_um(geometry: Geometry) -> Spacing | None:
    factor = _UM.get(geometry.unit)
    if factor is None:
        return None
    z, y, x = (s * factor for s in geometry.spacing)
    return z, y, x


def _as_stated(volume: Volume) -> Volume:
    """Return a volume without the unit that is custom in medicine and nowhere in its file."""
    if volume.info.get("size_stated", True):
        return volume
    size = " x ".join(f"{v:.4g}" for v in volume.geometry.spacing)
    note = (
        f"the file doesn't state its voxel size in full ({size}, without a unit or partly): "
        "lengths are in voxels; set it"
    )
    geometry = replace(volume.geometry, unit="pixel")
    return replace(volume, geometry=geometry, notes=(*volume.notes, note))


def _where(box: Box) -> str:
    spans = zip("zyx", box.start, box.stop, strict=True)
    return ", ".join(f"{axis} {a} to {b - 1}" for axis, a, b in spans)
