"""Localizer without training: templates are laid over the scan as an atlas is."""

from napari_openmedlab.models.engines.atlas.engine import Atlas

__all__ = ["Atlas"]
