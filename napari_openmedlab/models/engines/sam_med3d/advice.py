"""What the user has to know about an answer of SAM-Med3D."""

from __future__ import annotations

from collections.abc import Sequence

from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.labels import MaskPatch
from napari_openmedlab.models.engines.sam_med3d.chain import Chain
from napari_openmedlab.models.engines.sam_med3d.crops import SPACING_MM, WorkingGrid

__all__ = ["advice"]

_FACES = (("right-to-left", 0), ("front-to-back", 1), ("head-to-feet", 2))


def advice(grid: WorkingGrid, chain: Chain, mask: MaskPatch, *, chosen: bool) -> list[str]:
    """Return sentences: coarser grid, untrained spacing, cut objects, clicks without effect.

    Parameters
    ----------
    chosen : bool
        Whether the user set the working voxel, and so need not be told.
    """
    notes = []
    unit = grid.source.unit
    if unit != "mm" and not chosen:
        notes.append(
            f"SAM-Med3D was trained on CT and MR at 1.5 mm; here it looked at voxels of "
            f"{grid.spacing:.3g} {unit}. Set the option voxel size so that the object spans "
            "20 to 100 of 128 voxels."
        )
    elif grid.spacing > SPACING_MM * 1.001 and not chosen:
        notes.append(
            f"The object is larger than the 192 mm that SAM-Med3D sees at once, so it looked at a "
            f"coarser grid of {grid.spacing:.2f} mm; borders are less exact."
        )
    if chain.missed:
        notes.append(
            "A negative click lay outside everything SAM-Med3D looked at and changed nothing."
        )
    if faces := _cut_faces(chain, mask):
        notes.append(
            f"The mask reaches the {faces} edge of what SAM-Med3D looked at: the object may go "
            "on there. Click inside it near that edge to go on."
        )
    return notes


def _cut_faces(chain: Chain, mask: MaskPatch) -> str:
    """Return the axes along which the mask touches a crop's face that lies inside the scan."""
    found = []
    boxes = [state.crop.source_box() for state in chain.states]
    for name, axis in _FACES:
        for state, box in zip(chain.states, boxes, strict=True):
            source_axis = state.crop.grid.order[axis]
            low_open, high_open = state.crop.open_faces()[axis]
            ends = [(low_open, True), (high_open, False)]
            if state.crop.grid.signs[axis] < 0:
                ends = [(high_open, True), (low_open, False)]
            if any(
                is_open and _touches(mask, box, boxes, source_axis, low) for is_open, low in ends
            ):
                found.append(name)
                break
    return " and ".join(found)


def _touches(mask: MaskPatch, box: Box, boxes: Sequence[Box], axis: int, low: bool) -> bool:
    """Return whether a mask has voxels in a box's outermost layer that no other box holds."""
    edge = box.start[axis] if low else box.stop[axis] - 1
    start, stop = list(box.start), list(box.stop)
    start[axis], stop[axis] = edge, edge + 1
    layer = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    if not mask.inside(layer).any():
        return False
    beyond = edge - 1 if low else edge + 1
    return not any(b is not box and b.start[axis] <= beyond < b.stop[axis] for b in boxes)
