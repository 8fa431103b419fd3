"""The built-in promptable engine: no training, no weights, no network, any contrast."""

from napari_openmedlab.models.engines.built_in.engine import BuiltIn

__all__ = ["BuiltIn"]
