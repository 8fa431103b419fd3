"""The built-in axon filter: no training, no weights, a score for every voxel."""

from napari_openmedlab.models.engines.axon_filter.engine import AxonFilter

__all__ = ["AxonFilter"]
