"""Tells whether an image is the one a session was made on, without reading it whole."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from napari_openmedlab.errors import GeometryError, SessionError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Geometry, Volume

__all__ = ["Fingerprint", "fingerprint_of", "geometry_from_json", "geometry_to_json"]

_POSITIONS = (0.1, 0.5, 0.9)
_EDGE = 16  # voxels along each side of a sampled block


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """Grid and sampled content of an image.

    Attributes
    ----------
    geometry : Geometry
    sampled_sha256 : str
        Hash of 27 blocks of 16 x 16 x 16 voxels spread over the image, as float32.
    """

    geometry: Geometry
    sampled_sha256: str

    def check(self, volume: Volume) -> None:
        """Raise :class:`SessionError` with a sentence if ``volume`` is another image."""
        if different := self.geometry.difference(volume.geometry):
            raise SessionError(
                f"{volume.name} is not the image this session was made on: {different}; open "
                "the image it was made on"
            )
        if fingerprint_of(volume).sampled_sha256 != self.sampled_sha256:
            raise SessionError(
                f"{volume.name} lies on the grid of this session's image but its voxels differ; "
                "open the image the session was made on"
            )


def fingerprint_of(volume: Volume) -> Fingerprint:
    """Return the fingerprint of a volume; reads at most 27 small blocks, of lazy arrays too."""
    digest = hashlib.sha256()
    shape = volume.geometry.shape
    for place in product(_POSITIONS, repeat=3):
        centre = [round(p * (n - 1)) for p, n in zip(place, shape, strict=True)]
        low = tuple(c - _EDGE // 2 for c in centre)
        box = Box((low[0], low[1], low[2]), (low[0] + _EDGE, low[1] + _EDGE, low[2] + _EDGE))
        block = np.nan_to_num(np.asarray(volume.crop(box.clip(shape)), dtype="<f4"))
        digest.update(np.ascontiguousarray(block + np.float32(0)).tobytes())
    return Fingerprint(volume.geometry, digest.hexdigest())


def geometry_to_json(geometry: Geometry) -> dict[str, Any]:
    """Return a grid as plain values; floats keep every bit through JSON."""
    return {
        "shape": list(geometry.shape),
        "affine": geometry.affine.tolist(),
        "unit": geometry.unit,
        "frame": geometry.frame,
    }


def geometry_from_json(values: Mapping[str, Any]) -> Geometry:
    """Return the grid that :func:`geometry_to_json` described."""
    if values["unit"] not in ("mm", "um", "pixel") or values["frame"] not in ("patient", "image"):
        raise GeometryError(f"unknown unit or frame: {values['unit']}, {values['frame']}")
    shape = values["shape"]
    return Geometry(
        (shape[0], shape[1], shape[2]), values["affine"], values["unit"], values["frame"]
    )
