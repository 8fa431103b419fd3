"""What a scan is, where its file does not say."""

from __future__ import annotations

from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Volume

__all__ = ["looks_like_ct"]

_AIR = (-4096, -500)  # HU; no MR or microscope gives such voxels, every CT with air does


def looks_like_ct(volume: Volume) -> bool:
    """Return whether intensities are Hounsfield units: by the file's word, else by its air."""
    if volume.modality:
        return volume.modality.upper() == "CT"
    if volume.geometry.frame != "patient":
        return False
    # A few whole planes are read, not the volume: it may lie on disk.
    depth = volume.geometry.shape[0]
    for z in sorted({depth // 4, depth // 2, (3 * depth) // 4}):
        plane = volume.crop(Box((z, 0, 0), (z + 1, *volume.geometry.shape[1:])))
        if bool(((plane >= _AIR[0]) & (plane < _AIR[1])).any()):
            return True
    return False
