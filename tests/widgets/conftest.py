"""A viewer with a phantom, the panel in its dock, and folders of the test's own."""

from __future__ import annotations

import ball_engine
import pytest
from panel_hands import Hand, add_volume, phantom, pump

from napari_openmedlab.bridge.preferences import Preferences
from napari_openmedlab.models import catalogue


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    """Autosaves go to the test's own folder; the test engines are in the catalogue."""
    folder = tmp_path / "autosave"
    monkeypatch.setattr("napari_openmedlab.session.autosave.default_folder", lambda: folder)
    ours = ("SPEC", "CLICKS_ONLY", "POINT", "SLICES", "LACKS_PACKAGE")
    specs = (*(getattr(ball_engine, name) for name in ours), *catalogue.OWN_ENGINES)
    ball_engine.HINTS.clear()
    ball_engine.OPTIONS_SEEN.clear()
    monkeypatch.setattr(catalogue, "OWN_ENGINES", specs)
    wanted = Preferences(engine="ball", autosave_delay=0.05, letters=False)
    monkeypatch.setattr("napari_openmedlab.bridge.sessions.read_preferences", lambda: wanted)


@pytest.fixture
def viewer(make_napari_viewer):
    made = make_napari_viewer()
    made.window._qt_window.resize(1200, 800)
    return made


@pytest.fixture
def make_hand():
    """Return a function that gives a viewer a :class:`Hand`."""
    return Hand


@pytest.fixture
def make_panel(qtbot):
    """Return a function that opens the Segment panel as napari's Plugins menu does."""

    def make(viewer):
        _, panel = viewer.window.add_plugin_dock_widget("napari-openmedlab", "Segment")
        pump()
        return panel

    return make


@pytest.fixture
def scene(viewer, make_panel):
    """A viewer with the phantom and the panel: (viewer, image layer, panel, hand)."""
    image = add_volume(viewer, phantom())
    panel = make_panel(viewer)
    return viewer, image, panel, Hand(viewer)
