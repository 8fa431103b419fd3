"""A network with MedLAM's interface that knows where in the body it looks, and bodies for it.

Not the published network: stand-in weights can't tell whether structures are found. The body's
voxels (3 mm) say in turns, in three bands of grey, how far up, forward and left they lie.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from napari_openmedlab.geometry.extreme_points import wall_directions
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.device import Placement
from napari_openmedlab.models.engines.weights import Loaded
from napari_openmedlab.models.localisation import Landmarks, Template

FULL = 200  # voxels of the whole body along each axis, at most
BANDS = (-190.0, -60.0, 70.0)  # HU at the lowest coordinate of each axis
WIDE = 120.0
REACH = (1500.0, 600.0, 600.0)


class Knowing(torch.nn.Module):
    """Reads the coordinates from the grey levels."""

    memory_format = torch.channels_last_3d

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, patches, scales=(0, 1, 2)):
        self.seen += len(patches)
        return Output(self.located(patches), self.maps(patches, scales))

    def position(self, patches):
        self.seen += len(patches)
        return self.located(patches)

    def features(self, patches, scales=(0, 1, 2)):
        self.seen += len(patches)
        return self.maps(patches, scales)

    def where(self, patches, step):
        """Coordinates in body voxels at every ``step``-th voxel; NaN in air."""
        hounsfield = (patches - 0.5) * (400.0 / 0.6)
        found = []
        for low in BANDS:
            band = ((hounsfield >= low - 2) & (hounsfield <= low + WIDE + 2)).float()
            value = (hounsfield - low) / WIDE * FULL
            count = functional.avg_pool3d(band, 3, step, 1)
            mean = functional.avg_pool3d(band * value, 3, step, 1) / count
            found.append(torch.where(count > 1e-3, mean, torch.nan))
        return torch.cat(found, dim=1)

    def located(self, patches):
        """The coordinates of the patch's centre, by all that can be seen."""
        where = self.where(patches, 8)
        grid = torch.stack(torch.meshgrid(*(torch.arange(0.0, 64.0, 8.0) - 32,) * 3, indexing="ij"))
        origin = (where - grid).flatten(2).nanmedian(dim=2).values
        return torch.atanh(3.0 * (origin - FULL / 2) / torch.tensor(REACH))

    def maps(self, patches, scales):
        finest = 2 ** (2 - max(scales))
        where = self.where(patches, finest) + (finest - 1) / 2
        turns = torch.cat([where / 8, where / 40], dim=1)
        waves = torch.nan_to_num(torch.cat([turns.cos(), turns.sin()], dim=1))
        return tuple(functional.avg_pool3d(waves, 2 ** (max(scales) - scale)) for scale in scales)


class Output:
    def __init__(self, position, features):
        self.position, self.features = position, features


def body(low=(0, 0, 0), high=(96, 80, 90), codes="SAL", origin=(0.0, 0.0, 0.0), name="body"):
    """A part of the body as a CT: body voxels ``low`` to ``high`` along up, forward, left.

    Stored with axes growing as ``codes`` says; the same place in the body has the same voxels,
    but its patient coordinates depend on ``origin`` (LPS mm of body voxel 0).
    """
    index = np.meshgrid(*(np.arange(a, b) for a, b in zip(low, high, strict=True)), indexing="ij")
    turn = sum(index) % 3
    grey = np.choose(turn, [b + WIDE * i / FULL for b, i in zip(BANDS, index, strict=True)])
    affine = np.eye(4)
    affine[:3, :3] = 3.0 * wall_directions().T
    affine[:3, 3] = np.asarray(origin) + affine[:3, :3] @ np.asarray(low)
    volume = Volume(grey.astype(np.float32), Geometry(grey.shape, affine), None, name, "CT")
    return stored(volume, codes)


def stored(volume, codes):
    """The same scan with its axes (now growing to S, A, L) permuted and flipped."""
    from napari_openmedlab.geometry.frames import Reorientation

    opposite = dict(zip("SIAPLR", "ISPARL", strict=True))
    order, flips = [], []
    for code in codes:
        axis = next(n for n, own in enumerate("SAL") if code in (own, opposite[own]))
        order.append(axis)
        flips.append(code != "SAL"[axis])
    move = Reorientation(tuple(order), tuple(flips))
    array = np.ascontiguousarray(move.apply(volume.array))
    return Volume(array, volume.geometry.reorient(move), None, volume.name, volume.modality)


def marks(name, low, high, origin=(0.0, 0.0, 0.0)):
    """Six extreme points of a block of body voxels, walls at ``low`` and ``high``."""
    low, high = np.array(low, float), np.array(high, float)
    points = np.tile((low + high) / 2, (6, 1))
    for axis in range(3):
        points[axis, axis], points[axis + 3, axis] = low[axis], high[axis]
    world = points @ (3.0 * wall_directions()) + np.asarray(origin)
    return Landmarks(name, tuple(tuple(point) for point in world))


class Kept(dict):
    """Features in memory."""

    def put(self, key, arrays):
        assert key not in self
        self[key] = dict(arrays)


def template(volume, *structures, features=None, name="one"):
    return Template(name, f"content of {name}", structures, lambda: volume, features)


def loaded(network, sha256="0" * 64):
    """The network on the CPU, as the engine gets it."""
    record = Record("knowing", "medlam", sha256=sha256, source_sha256=sha256)
    return Loaded(network, record, Placement("cpu", "float32", 1))
