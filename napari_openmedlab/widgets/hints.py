"""Tells an engine where the user looks, so that it can work ahead of the first click."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from qtpy.QtCore import QObject, QTimer

from napari_openmedlab.geometry.prompts import as_point
from napari_openmedlab.geometry.volume import Geometry
from napari_openmedlab.models.catalogue import EngineSpec, get_spec
from napari_openmedlab.models.contract import Hint
from napari_openmedlab.session.session import Session
from napari_openmedlab.widgets.canvas_input import CanvasInput
from napari_openmedlab.widgets.gestures import ToolState
from napari_openmedlab.widgets.live_options import LiveOptions
from napari_openmedlab.widgets.prompt_layers import PromptLayers
from napari_openmedlab.widgets.tools import Tool
from napari_openmedlab.widgets.worker_bridge import WorkerBridge

__all__ = ["REST_MS", "Hints", "slice_normal"]

REST_MS = 150
"""A cursor that stays this long has found its place."""


class Hints(QObject):
    """Sends hints while a prompt tool is on and the engine can use them; else costs nothing.

    Parameters
    ----------
    session : Session
    worker : WorkerBridge
    canvas : CanvasInput
    layers : PromptLayers
    live : LiveOptions
    ready : callable() -> bool
        Whether the engine could run.
    """

    def __init__(
        self,
        session: Session,
        worker: WorkerBridge,
        canvas: CanvasInput,
        layers: PromptLayers,
        live: LiveOptions,
        ready: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._session = session
        self._worker = worker
        self._canvas = canvas
        self._layers = layers
        self._live = live
        self._ready = ready
        self._state = ToolState()
        self._watching = False
        self._rest = QTimer(self)
        self._rest.setSingleShot(True)
        self._rest.setInterval(REST_MS)
        self._rest.timeout.connect(self._give)

    def follow(self, state: ToolState) -> None:
        """Follow this tool: with the engine chosen now, and only if it can work ahead."""
        self._state = state
        wanted = state.tool is not None and self._spec().ahead != ""
        self._canvas.follow_cursor(self.stir if wanted else None)
        if wanted != self._watching:
            self._watching = wanted
            moved = self._layers.view_changed
            (moved.connect if wanted else moved.disconnect)(self.stir)
        if wanted:
            self.stir()
        else:
            self._rest.stop()

    def stir(self) -> None:
        """Note that the cursor or the slice moved; the hint follows when it rests."""
        if self._watching:
            self._rest.start()

    def stop(self) -> None:
        """Stop listening."""
        self.follow(ToolState())

    def _spec(self) -> EngineSpec:
        return get_spec(self._session.choice.engine)

    def _give(self) -> None:
        spec = self._spec()
        if self._worker.busy:
            self._rest.start()  # what runs goes first; then look where the cursor is
            return
        index = self._place(spec)
        if index is None or not self._session.volume.geometry.contains_index(index):
            return
        if self._ready():
            self._worker.anticipate(spec.id, self._session.volume, self._hint(spec, index))

    def _place(self, spec: EngineSpec) -> NDArray[np.float64] | None:
        """Return the voxel index that the next prompt may have, if work for it is of use."""
        if not self._layers.in_slices:
            return None
        place = self._canvas.place_under_cursor()
        if spec.ahead == "point":
            return place if self._begins_with_click() else None
        if place is not None:
            return place
        geometry = self._session.volume.geometry
        axis = self._layers.hidden_axis()
        middle = (np.array(geometry.shape) - 1) / 2
        middle[axis] = self._layers.visible_slice(axis)
        return middle

    def _begins_with_click(self) -> bool:
        """Return whether the next click opens an object; later ones find their work done."""
        if self._state.tool is not Tool.CLICK or not self._state.positive:
            return False
        active = self._session.active
        return active is None or (
            active.prompts.is_empty and not active.voxels and not active.locked
        )

    def _hint(self, spec: EngineSpec, index: NDArray[np.float64]) -> Hint:
        geometry = self._session.volume.geometry
        options = self._live.fill(spec, self._session.choice.options)
        point = as_point(geometry.to_world(index))
        if spec.ahead == "point":
            return Hint(point, options=options)
        normal, thickness = slice_normal(geometry, self._layers.hidden_axis())
        return Hint(point, normal, reach=0.49 * thickness, options=options)


def slice_normal(geometry: Geometry, axis: int) -> tuple[tuple[float, float, float], float]:
    """Return the world direction across the slices of an array axis, and their distance.

    At right angles to the slices, so on a sheared grid not along the array axis itself.
    """
    columns = geometry.affine[:3, :3]
    one, other = (columns[:, a] for a in range(3) if a != axis)
    across = np.cross(one, other)
    unit = across / np.linalg.norm(across)
    return as_point(unit), float(abs(unit @ columns[:, axis]))
