"""The image of the session tests: two blocks on an oblique grid."""

import numpy as np

from napari_openmedlab.geometry.volume import Geometry, Volume

SHAPE = (12, 20, 24)


def oblique(shape=SHAPE):
    """An anisotropic grid turned 20 degrees about z, far from the origin."""
    turn = np.radians(20)
    affine = np.eye(4)
    affine[:3, :3] = np.array(
        [
            [0.0, -np.sin(turn) * 1.5, np.cos(turn) * 0.8],
            [0.0, np.cos(turn) * 1.5, np.sin(turn) * 0.8],
            [-4.0, 0.0, 0.0],
        ]
    )
    affine[:3, 3] = (-120.0, 33.0, 700.0)
    return Geometry(shape, affine)


def two_blocks():
    """An image with a bright block and a middling one, 2 voxels apart."""
    array = np.zeros(SHAPE, dtype=np.int16)
    array[3:9, 4:14, 3:10] = 100
    array[3:9, 4:14, 12:20] = 200
    return Volume(array, oblique(), name="two blocks", modality="CT")
