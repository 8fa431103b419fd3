"""The viewer a plugin widget is given, as the object it stands for."""

from __future__ import annotations

from typing import Any

__all__ = ["plain_viewer"]


def plain_viewer(viewer: Any) -> Any:
    """Return the viewer behind the proxy that napari hands to widgets of plugins.

    The proxy keeps plugins from private names, which we do not use, and wraps whatever is
    reached through it anew each time: two accesses to one layer give two objects. We know
    layers by reference, so we need the layers themselves.
    """
    return getattr(viewer, "__wrapped__", viewer)
