"""Commands of the manifest: what menus and the command palette do."""

from __future__ import annotations

from typing import Any

import napari

from napari_openmedlab.bridge.preferences import PLUGIN
from napari_openmedlab.bridge.readers import PATTERNS

__all__ = [
    "open_axons_panel",
    "open_cohort_panel",
    "open_export_panel",
    "open_image",
    "open_models_panel",
    "open_organs_panel",
    "open_segment_panel",
    "open_train_panel",
    "prefer_our_reader",
]


def open_segment_panel(viewer: napari.viewer.Viewer) -> None:
    """Open the Segment panel in this viewer, or bring it to the front."""
    _show(viewer, "Segment")


def open_axons_panel(viewer: napari.viewer.Viewer) -> None:
    """Open the Axons panel in this viewer, or bring it to the front."""
    _show(viewer, "Axons")


def open_export_panel(viewer: napari.viewer.Viewer) -> None:
    """Open the Export panel in this viewer, or bring it to the front."""
    _show(viewer, "Export")


def open_models_panel(viewer: napari.viewer.Viewer) -> None:
    """Open the Models panel in this viewer, or bring it to the front."""
    _show(viewer, "Models")


def open_organs_panel(viewer: napari.viewer.Viewer) -> None:
    """Open the Organs panel in this viewer, or bring it to the front."""
    _show(viewer, "Organs")


def open_cohort_panel(viewer: napari.viewer.Viewer) -> None:
    """Open the Cohort panel in this viewer, or bring it to the front."""
    _show(viewer, "Cohort")


def open_train_panel(viewer: napari.viewer.Viewer) -> None:
    """Open the Train panel in this viewer, or bring it to the front."""
    _show(viewer, "Train")


def _show(viewer: Any, panel: str) -> None:
    viewer.window.add_plugin_dock_widget(PLUGIN, panel)


def open_image(viewer: napari.viewer.Viewer) -> None:
    """Ask for a file and open it with our reader: TIFF stacks, DICOM files without a suffix."""
    from napari.utils.notifications import show_error
    from qtpy.QtWidgets import QApplication, QFileDialog

    from napari_openmedlab.bridge.readers import read_layers
    from napari_openmedlab.errors import OpenMedLabError

    path, _ = QFileDialog.getOpenFileName(QApplication.activeWindow(), "Open a scan")
    if not path:
        return
    try:
        layers = read_layers(path)
    except OpenMedLabError as error:
        show_error(str(error))
        return
    for layer in layers:
        if layer[0] is not None:
            viewer.add_layer(napari.layers.Layer.create(*layer))


def prefer_our_reader() -> None:
    """Let napari open medical files with this plugin without asking.

    Sets napari's own preference (Preferences, Plugins, file extensions) for the file names in
    the manifest and for folders; it can be changed back there. A folder that holds nothing of
    ours still brings napari's question which reader to take.
    """
    from napari.settings import get_settings
    from napari.utils.notifications import show_info

    plugins = get_settings().plugins
    ours = dict.fromkeys((*PATTERNS, "*/"), PLUGIN)  # napari ends the path of a folder with /
    plugins.extension2reader = {**plugins.extension2reader, **ours}
    show_info("Medical files open with napari-openmedlab from now on (see Preferences, Plugins).")
