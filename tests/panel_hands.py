"""What panel tests do by hand: a phantom, clicks and keys on the real canvas, waiting."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from qtpy.QtCore import QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from napari_openmedlab.bridge.layers import volume_to_layer_data
from napari_openmedlab.bridge.viewer import unit_factors
from napari_openmedlab.geometry.volume import Geometry, Volume

__all__ = ["Hand", "add_volume", "phantom", "pump", "use_engine", "wait_for"]

SHAPE = (24, 60, 50)
SPACING = (3.0, 0.8, 1.0)


def phantom(shape=SHAPE, spacing=SPACING, name="phantom"):
    """A patient volume in display order (I, P, L) with a bright block, off centre."""
    affine = np.zeros((4, 4))
    affine[0, 2], affine[1, 1], affine[2, 0], affine[3, 3] = spacing[2], spacing[1], -spacing[0], 1
    affine[:3, 3] = (-20.0, -30.0, 40.0)
    array = np.zeros(shape, dtype=np.int16)
    array[tuple(slice(n // 4, n // 2) for n in shape)] = 100
    return Volume(array, Geometry(shape, affine, frame="patient"), name=name)


def add_volume(viewer, volume):
    data, kwargs, _ = volume_to_layer_data(volume)
    return viewer.add_image(data, **kwargs)


def pump(ms=30):
    QTest.qWait(ms)


class Hand:
    """Moves the mouse and presses keys on the canvas of a viewer, as a user does."""

    def __init__(self, viewer):
        self._window = viewer.window
        self.viewer = viewer

    @property
    def native(self):
        return self._window._qt_viewer.canvas.native

    def centre(self):
        """Return the middle of the view (napari's camera follows at the next drawing only)."""
        return np.array(self._window._qt_viewer.canvas.camera.center, dtype=float)

    def pixel(self, world):
        """Return the canvas pixel of a napari world position on the slice that is shown."""
        canvas = self._window._qt_viewer.canvas
        y, x = (world[axis] for axis in self.viewer.dims.displayed)
        node = canvas.view.scene.node_transform(canvas._scene_canvas.scene)
        place = node.map([x, y, 0, 1])
        return QPoint(round(float(place[0] / place[3])), round(float(place[1] / place[3])))

    def go(self, image, index):
        """Scroll to the slice of a voxel and return the voxel's pixel."""
        lead = self.viewer.dims.ndim - image.ndim
        world = np.array(image.data_to_world(np.array(index, dtype=float)[-image.ndim :]))
        world = np.concatenate([np.zeros(lead), world / unit_factors(self.viewer, image)])
        hidden = [a for a in range(self.viewer.dims.ndim) if a not in self.viewer.dims.displayed]
        for axis in hidden:
            self.viewer.dims.set_point(axis, world[axis])
        QApplication.processEvents()
        return self.pixel(world)

    def click(self, image, index, modifier=Qt.KeyboardModifier.NoModifier):
        place = self.go(image, index)
        QTest.mouseMove(self.native, place)
        QTest.mouseClick(self.native, Qt.MouseButton.LeftButton, modifier, place)
        QApplication.processEvents()

    def drag(self, image, first, last, steps=6):
        start, stop = self.go(image, first), self.go(image, last)
        left = Qt.MouseButton.LeftButton
        QTest.mouseMove(self.native, start)
        QTest.mousePress(self.native, left, Qt.KeyboardModifier.NoModifier, start)
        for k in range(1, steps + 1):
            share = k / steps
            between = QPoint(
                round(start.x() + (stop.x() - start.x()) * share),
                round(start.y() + (stop.y() - start.y()) * share),
            )
            QApplication.sendEvent(self.native, _move_event(self.native, between))
            QTest.qWait(20)
        QTest.mouseRelease(self.native, left, Qt.KeyboardModifier.NoModifier, stop)
        QApplication.processEvents()

    def hover(self, image, index):
        """Move the mouse over a voxel without a button."""
        place = self.go(image, index)
        event = _move_event(self.native, place, Qt.MouseButton.NoButton)
        QApplication.sendEvent(self.native, event)
        QApplication.processEvents()

    def key(self, key, modifier=Qt.KeyboardModifier.NoModifier):
        QTest.keyClick(self.native, key, modifier)
        QApplication.processEvents()


def _move_event(native, place, button=Qt.MouseButton.LeftButton):
    """A mouse move, with the left button held (QTest's own carries no buttons)."""
    from qtpy.QtCore import QEvent, QPointF
    from qtpy.QtGui import QMouseEvent

    return QMouseEvent(
        QEvent.Type.MouseMove,
        QPointF(place),
        QPointF(native.mapToGlobal(place)),
        Qt.MouseButton.NoButton,
        button,
        Qt.KeyboardModifier.NoModifier,
    )


def use_engine(panel, engine_id, **options):
    """Choose an engine in the drop-down list, as a user does, and set options of it."""
    row = [spec.id for spec in panel._engine._specs].index(engine_id)
    panel.engine.choice.setCurrentIndex(row)
    panel.engine.choice.activated.emit(row)
    if options:
        panel.session.choice = replace(panel.session.choice, options=options)
    pump()


def wait_for(qtbot, condition, timeout=5000):
    qtbot.waitUntil(condition, timeout=timeout)
    pump()
