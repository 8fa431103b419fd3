"""What readers look for in the voxels themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["nan_note"]


def nan_note(array: NDArray[Any]) -> tuple[str, ...]:
    """Return a note if voxels hold no number (NaN) or infinity; they are kept as they are.

    Notes
    -----
    Minimum and maximum carry NaN and infinity, so an image without them costs two passes and
    no copy.
    """
    if array.dtype.kind != "f" or array.size == 0:
        return ()
    if np.isfinite(array.min()) and np.isfinite(array.max()):
        return ()
    bad = sum(int(np.count_nonzero(~np.isfinite(plane))) for plane in array)
    return (
        f"{bad} of {array.size} voxels hold no number (NaN or infinity); they are kept, and "
        "engines leave them out",
    )
