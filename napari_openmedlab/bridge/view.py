"""Views a radiologist knows: axial, coronal, sagittal, and letters at the edges of the canvas."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from napari.components.overlays import TextOverlay
from napari.layers import Image, Labels, Layer
from numpy.typing import ArrayLike, NDArray

from napari_openmedlab.bridge.layers import tag_of, volume_of_layer
from napari_openmedlab.errors import GeometryError
from napari_openmedlab.geometry.volume import Geometry

__all__ = ["EDGES", "AnatomicalLetters", "Plane", "direction_letters", "show_3d", "show_plane"]

Plane = Literal["axial", "coronal", "sagittal"]

EDGES = ("left", "right", "top", "bottom")

_ORDERS: dict[str, tuple[int, int, int]] = {
    "axial": (0, 1, 2),
    "coronal": (1, 0, 2),
    "sagittal": (2, 0, 1),
}
_POSITIONS = {
    "left": "middle_left",
    "right": "middle_right",
    "top": "top_center",
    "bottom": "bottom_center",
}
_SIGNS = (("R", "L"), ("A", "P"), ("I", "S"))
_SECOND = 0.5  # a second letter from 30 degrees of tilt on


def show_plane(viewer: Any, plane: Plane) -> None:
    """Show slices of one plane: axial, coronal (head up) or sagittal (head up, anterior left).

    Sets the order of the last three axes, 2D display, and fits the view. (napari's own "roll"
    gives a coronal view lying on its side.)
    """
    lead = viewer.dims.ndim - 3
    if lead < 0:
        raise GeometryError("a 2D image has one view only; open a 3D scan for other planes")
    viewer.dims.ndisplay = 2
    viewer.dims.order = (*range(lead), *(lead + axis for axis in _ORDERS[plane]))
    viewer.reset_view()


def show_3d(viewer: Any) -> None:
    """Show the volume in 3D from the front: head up, the patient's right on the left."""
    lead = viewer.dims.ndim - 3
    if lead < 0:
        raise GeometryError("a 2D image can't be shown in 3D; open a 3D scan")
    viewer.dims.order = tuple(range(viewer.dims.ndim))
    viewer.dims.ndisplay = 3
    viewer.reset_view()
    # Axes (I, P, L): looking towards posterior, up is against inferior.
    viewer.scene.camera.set_view_direction((0.0, 1.0, 0.0), (-1.0, 0.0, 0.0))


def direction_letters(direction: ArrayLike) -> str:
    """Return where an LPS direction points to: ``"L"``, or ``"LA"`` if clearly between two.

    The nearest patient axis comes first; a second letter follows from 30 degrees of tilt on,
    as on the edges of oblique DICOM images.
    """
    vector = np.asarray(direction, dtype=np.float64)
    vector = vector / np.linalg.norm(vector)
    ranked = sorted(range(3), key=lambda axis: -round(abs(float(vector[axis])), 6))
    kept = [ranked[0], *(a for a in ranked[1:2] if abs(vector[a]) >= _SECOND - 1e-9)]
    return "".join(_SIGNS[axis][int(vector[axis] > 0)] for axis in kept)


class AnatomicalLetters:
    """R, L, A, P, S, I at the edges of the canvas, right in every plane, flip and 3D rotation.

    They are overlays of the canvas, so screenshots show them. They show while a patient image of
    ours is visible; images whose axes are not known to be a patient's get none.

    Parameters
    ----------
    viewer : napari.Viewer or napari.components.ViewerModel

    Attributes
    ----------
    letters : dict
        What stands at each edge now: left, right, top, bottom; empty if nothing is shown.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._watched: list[Layer] = []
        self.letters: dict[str, str] = {}
        for edge in EDGES:
            viewer.canvas.overlays[_key(edge)] = TextOverlay(
                position=_POSITIONS[edge], font_size=16, visible=False
            )
        for event in self._events():
            event.connect(self._update)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(self._watch)
        self._watch()

    def close(self) -> None:
        """Take the letters away and stop listening."""
        for event in self._events():
            event.disconnect(self._update)
        for event in (self._viewer.layers.events.inserted, self._viewer.layers.events.removed):
            event.disconnect(self._watch)
        self._unwatch()
        for edge in EDGES:
            self._viewer.canvas.overlays.pop(_key(edge), None)
        self.letters = {}

    def _events(self) -> tuple[Any, ...]:
        dims, camera = self._viewer.dims, self._viewer.scene.camera
        return (
            dims.events.order,
            dims.events.ndisplay,
            camera.events.angles,
            camera.events.orientation,
        )

    def _watch(self, event: Any = None) -> None:
        """Listen to what makes a layer appear, vanish or move."""
        self._unwatch()
        for layer in self._viewer.layers:
            if isinstance(layer, Image | Labels) and tag_of(layer) is not None:
                self._watched.append(layer)
                for name in ("visible", "data", "scale", "translate", "rotate", "affine"):
                    getattr(layer.events, name).connect(self._update)
        self._update()

    def _unwatch(self) -> None:
        for layer in self._watched:
            for name in ("visible", "data", "scale", "translate", "rotate", "affine"):
                getattr(layer.events, name).disconnect(self._update)
        self._watched = []

    def _update(self, event: Any = None) -> None:
        geometry = self._geometry()
        self.letters = {} if geometry is None else edge_letters(self._viewer, geometry)
        for edge in EDGES:
            overlay = self._viewer.canvas.overlays[_key(edge)]
            overlay.text = self.letters.get(edge, "")
            overlay.visible = edge in self.letters

    def _geometry(self) -> Geometry | None:
        """Return the grid of the topmost visible patient image, if there is one."""
        for layer in reversed(self._watched):
            if layer.visible and layer.ndim == 3:
                geometry = volume_of_layer(layer).geometry
                if geometry.frame == "patient":
                    return geometry
        return None


def edge_letters(viewer: Any, geometry: Geometry) -> dict[str, str]:
    """Return the letters for the four edges of the canvas, for a layer on this grid."""
    right, up = _screen_axes(viewer)
    axes = geometry.affine[:3, :3] / np.linalg.norm(geometry.affine[:3, :3], axis=0)
    letters = {
        "right": axes @ right[-3:],
        "left": axes @ -right[-3:],
        "top": axes @ up[-3:],
        "bottom": axes @ -up[-3:],
    }
    return {edge: direction_letters(v) for edge, v in letters.items() if np.linalg.norm(v) > 1e-6}


def _screen_axes(viewer: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the directions to the right and up on the screen, along the viewer's axes."""
    camera, dims = viewer.scene.camera, viewer.dims
    right, up = np.zeros(max(3, dims.ndim)), np.zeros(max(3, dims.ndim))
    shown = list(dims.displayed)
    if dims.ndisplay == 2:
        vertical, horizontal = (str(word) for word in camera.orientation2d)
        up[shown[-2]] = 1.0 if vertical == "up" else -1.0
        right[shown[-1]] = 1.0 if horizontal == "right" else -1.0
        return right, up
    view, above = np.array(camera.view_direction), np.array(camera.up_direction)
    sign = 1.0 if str(camera.handedness) == "right" else -1.0
    up[shown] = above
    right[shown] = sign * np.cross(view, above)
    return right, up


def _key(edge: str) -> str:
    return f"openmedlab_{edge}"
