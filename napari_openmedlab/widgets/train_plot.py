"""Loss and held-out Dice of a run, drawn while it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyqtgraph  # type: ignore[import-untyped]
from qtpy.QtWidgets import QWidget

__all__ = ["TrainPlot"]

_COLOURS = ("#60a5fa", "#22c55e", "#f59e0b", "#ef4444", "#a78bfa", "#2dd4bf", "#f472b6", "#a3e635")
_MOST_POINTS = 4000
_MOST_CLASSES = len(_COLOURS)
_MEAN = "mean"
_SMOOTHING = 0.1


class TrainPlot(pyqtgraph.GraphicsLayoutWidget):
    """Two diagrams over the iterations: the loss, also smoothed, and Dice by class."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setBackground(None)
        self.setMinimumHeight(260)
        self.setToolTip("Above: loss of each batch, and its running mean. Below: held-out Dice.")
        self._loss = self.addPlot(row=0, col=0)
        self._dice = self.addPlot(row=1, col=0)
        self._loss.setLabel("left", "loss")
        self._dice.setLabel("left", "Dice")
        self._dice.setLabel("bottom", "iteration")
        self._dice.setXLink(self._loss)
        self._dice.setYRange(0, 1, padding=0.02)
        for plot in (self._loss, self._dice):
            plot.showGrid(x=True, y=True, alpha=0.2)
            plot.setMenuEnabled(False)
            plot.hideButtons()
        self._legend = self._dice.addLegend(offset=(-5, -5), labelTextSize="8pt")
        self._raw = self._loss.plot(pen=pyqtgraph.mkPen("#64748b", width=1))
        self._smooth = self._loss.plot(pen=pyqtgraph.mkPen("#f8fafc", width=2))
        self._curves: dict[str, pyqtgraph.PlotDataItem] = {}
        self.clear_run()

    def clear_run(self) -> None:
        """Forget the run that was shown."""
        self.losses: list[tuple[int, float]] = []
        self.dice: list[tuple[int, dict[str, float]]] = []
        self._mean = math.nan
        self._smoothed: list[float] = []
        for curve in self._curves.values():
            self._dice.removeItem(curve)
        self._legend.clear()
        self._curves.clear()
        self._raw.setData([], [])
        self._smooth.setData([], [])

    def add_loss(self, iteration: int, loss: float, *, draw: bool = True) -> None:
        """Add the loss of an iteration; ``draw`` when nothing more comes at once."""
        if math.isfinite(loss):
            first = math.isnan(self._mean)
            self._mean = loss if first else self._mean + _SMOOTHING * (loss - self._mean)
            self.losses.append((iteration, loss))
            self._smoothed.append(self._mean)
        if len(self.losses) > _MOST_POINTS:  # every other one tells as much
            self.losses, self._smoothed = self.losses[::2], self._smoothed[::2]
        if draw and self.losses:
            places, values = zip(*self.losses, strict=True)
            self._raw.setData(places, values)
            self._smooth.setData(places, self._smoothed)

    def add_dice(self, iteration: int, dice: Mapping[str, float]) -> None:
        """Add the Dice by class name of an iteration."""
        there = {name: value for name, value in dice.items() if math.isfinite(value)}
        if not there:
            return
        self.dice.append((iteration, there))
        shown = [name for name in dice if name in there][:_MOST_CLASSES]
        for number, name in enumerate(shown):
            self._curve(name, _COLOURS[number], 1)
        if len(there) > 1:
            self._curve(_MEAN, "#f8fafc", 3)
        for name, curve in self._curves.items():
            points = [(i, _of(found, name)) for i, found in self.dice if _of(found, name) >= 0]
            places, values = zip(*points, strict=True) if points else ((), ())
            curve.setData(places, values)

    def _curve(self, name: str, colour: str, width: int) -> None:
        if name not in self._curves:
            pen = pyqtgraph.mkPen(colour, width=width)
            self._curves[name] = self._dice.plot(
                pen=pen, name=name, symbol="o", symbolSize=4, symbolBrush=colour, symbolPen=None
            )


def _of(found: Mapping[str, float], name: str) -> float:
    """Return the value of a class, or of all together; below 0 if there is none."""
    if name == _MEAN and name not in found:
        return sum(found.values()) / len(found)
    return found.get(name, -1.0)
