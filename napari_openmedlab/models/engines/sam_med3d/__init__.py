"""SAM-Med3D: one click, one 3D mask."""

from napari_openmedlab.models.engines.sam_med3d.engine import SamMed3D

__all__ = ["SamMed3D"]
