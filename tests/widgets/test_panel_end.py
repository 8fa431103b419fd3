"""The end of a panel is heard, whichever way it goes, and once."""

from __future__ import annotations

import gc

import pytest
from qtpy.QtWidgets import QWidget

from napari_openmedlab.widgets.panel_end import PanelEnd


class Panel(QWidget):
    """Belongs to a cycle, as panels do: Python's collector may take it before Qt does."""

    def __init__(self, parent, heard):
        super().__init__(parent)
        self.itself = self
        self.end = PanelEnd()
        self.end.add(lambda: heard.append("first added"))
        self.end.add(lambda: heard.append("last added"))
        self.end.start(self)


def test_the_end_is_called_once_in_reverse_order(qtbot):
    heard = []
    panel = Panel(None, heard)
    qtbot.addWidget(panel)
    panel.end.call()
    panel.end.call()
    assert heard == ["last added", "first added"]


def test_a_destroyed_window_ends_its_panels(qtbot):
    heard = []
    window = QWidget()
    panel = Panel(window, heard)
    window.deleteLater()
    qtbot.waitUntil(lambda: len(heard) == 2)
    assert panel.itself is panel


def test_a_panel_that_was_collected_with_its_window_is_heard_of_too(qtbot):
    heard = []
    window = QWidget()
    window.itself, window.panel = window, Panel(window, heard)
    del window
    gc.collect()
    qtbot.waitUntil(lambda: len(heard) == 2)


def test_an_error_at_the_end_keeps_nothing_else_from_it():
    heard, end = [], PanelEnd()
    end.add(lambda: heard.append("done"))
    end.add(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        end.call()
    assert heard == ["done"]
