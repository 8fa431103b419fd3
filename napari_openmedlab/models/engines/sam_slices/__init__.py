"""SAM-Med2D, FT-SAM, SAM and MedSAM: prompts on slices, propagated to 3D."""

from napari_openmedlab.models.engines.sam_slices.engine import MedSam, Sam, SamMed2D

__all__ = ["MedSam", "Sam", "SamMed2D"]
