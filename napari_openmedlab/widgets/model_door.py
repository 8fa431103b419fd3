"""The way from an engine that lacks its model to the Models panel."""

from __future__ import annotations

from typing import Any

from napari_openmedlab.bridge.preferences import PLUGIN
from napari_openmedlab.models.catalogue import EngineSpec, checkpoints

__all__ = ["open_models"]


def open_models(viewer: Any, spec: EngineSpec | None = None) -> None:
    """Open the Models panel as a tab of the panels at the side, and bring it to the front.

    Parameters
    ----------
    viewer : napari.Viewer
    spec : EngineSpec, optional
        Select a published model that this engine can use.
    """
    dock, panel = viewer.window.add_plugin_dock_widget(PLUGIN, "Models", tabify=True)
    dock.show()
    dock.raise_()
    networks = spec.networks if spec is not None else ()
    fitting = [found for network in networks for found in checkpoints(network=network)]
    if fitting:
        panel.list.table.select(fitting[0].id)
