"""STU-Net: names 104 structures of a CT at once."""

from napari_openmedlab.models.engines.stu_net.engine import StuNet

__all__ = ["StuNet"]
