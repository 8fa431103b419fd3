"""Axon-Seg: D-LMBmap's networks on light-sheet volumes, block by block."""

from napari_openmedlab.models.engines.axon_seg.engine import AxonSegEngine

__all__ = ["AxonSegEngine"]
