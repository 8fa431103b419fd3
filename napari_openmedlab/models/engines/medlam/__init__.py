"""MedLAM: structures marked in template scans, found in another scan."""

from napari_openmedlab.models.engines.medlam.engine import MedLam

__all__ = ["MedLam"]
