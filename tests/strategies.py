"""Hypothesis strategies for grids in space: any orientation, oblique, sheared, anisotropic."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Geometry

ORIENTATIONS = tuple(
    np.eye(3)[list(order)] * np.array(signs)[:, None]
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
)
"""All 48 matrices that only permute and flip axes."""

finite = st.floats(-500, 500, allow_nan=False, width=32)


def shapes(low: int = 1, high: int = 12):
    """Array shapes of three axes."""
    return st.tuples(*(st.integers(low, high),) * 3)


def spacings(low: float = 0.25, high: float = 8.0):
    """Voxel sizes of three axes, anisotropic."""
    return st.tuples(*(st.floats(low, high, width=32),) * 3)


@st.composite
def affines(draw, *, degrees: float = 40.0, shear: float = 0.3):
    """Draw affines: one of 48 orientations, then tilted, sheared, scaled and moved."""
    turn = Rotation.from_rotvec(
        np.radians(draw(st.floats(0, degrees))) * _direction(draw)
    ).as_matrix()
    lean = np.eye(3)
    lean[0, 1] = draw(st.floats(-shear, shear))
    affine = np.eye(4)
    linear = turn @ lean @ draw(st.sampled_from(ORIENTATIONS))
    affine[:3, :3] = linear * np.array(draw(spacings()))
    affine[:3, 3] = [draw(finite) for _ in range(3)]
    return affine


def straight_affines():
    """Affines without tilt or shear."""
    return affines(degrees=0.0, shear=0.0)


def oblique_affines():
    """Tilted affines with right angles, as NIfTI's qform and ITK can hold them."""
    return affines(shear=0.0)


@st.composite
def geometries(draw, source=None, **sizes):
    """Draw grids with one of :func:`affines` (or another strategy for them)."""
    return Geometry(draw(shapes(**sizes)), draw(affines() if source is None else source))


@st.composite
def boxes_in(draw, shape: tuple[int, int, int]):
    """Draw boxes of at least one voxel inside a shape."""
    start = [draw(st.integers(0, n - 1)) for n in shape]
    stop = [draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True)]
    return Box(tuple(start), tuple(stop))


def _direction(draw) -> np.ndarray:
    vector = np.array([draw(st.floats(-1, 1, width=32)) for _ in range(3)])
    length = np.linalg.norm(vector)
    return vector / length if length > 1e-3 else np.array([0.0, 0.0, 1.0])
