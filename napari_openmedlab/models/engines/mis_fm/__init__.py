"""Models fine-tuned here (FMUNet, PCT-Net): a scan in, the structures they were taught out."""

from napari_openmedlab.models.engines.mis_fm.engine import MisFm

__all__ = ["MisFm"]
