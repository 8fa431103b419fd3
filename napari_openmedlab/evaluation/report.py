"""Agreement figures as a table for people and as plain values for JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from napari_openmedlab.evaluation.metrics import Agreement, volume_of
from napari_openmedlab.geometry.volume import Geometry

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """Agreement of each label of a map with its reference.

    Attributes
    ----------
    rows : sequence of (value, Agreement)
    names : mapping of int to str
        Names of the values, as far as known.
    geometry : Geometry
        Grid of both maps.
    tolerance : float
        Of the surface Dice, in the geometry's unit.
    """

    rows: Sequence[tuple[int, Agreement]]
    names: Mapping[int, str]
    geometry: Geometry
    tolerance: float

    def mean(self, field: str) -> float:
        """Return the mean of ``dice``, ``surface_dice`` or ``hd95`` over the labels.

        NaN without labels; ``inf`` if a distance is.
        """
        values = [float(getattr(agreement, field)) for _, agreement in self.rows]
        return sum(values) / len(values) if values else float("nan")

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; a distance that does not exist is ``None``."""
        unit = self.geometry.unit
        labels = []
        for value, agreement in self.rows:
            size, size_unit = volume_of(agreement.voxels, self.geometry)
            labels.append(
                {
                    "label": value,
                    "name": self.names.get(value, ""),
                    "dice": agreement.dice,
                    "surface_dice": agreement.surface_dice,
                    "hd95": _finite(agreement.hd95),
                    "volume": size,
                    "reference_volume": volume_of(agreement.reference_voxels, self.geometry)[0],
                    "volume_unit": size_unit,
                }
            )
        return {
            "distance_unit": unit,
            "surface_dice_tolerance": self.tolerance,
            "mean_dice": _finite(self.mean("dice")),
            "mean_surface_dice": _finite(self.mean("surface_dice")),
            "mean_hd95": _finite(self.mean("hd95")),
            "labels": labels,
        }

    def as_table(self) -> Table:
        """Return a table for the terminal."""
        from rich.table import Table

        size_unit = volume_of(0, self.geometry)[1]
        unit = self.geometry.unit
        table = Table("label", "name")
        heads = (
            "Dice",
            f"surface Dice @ {self.tolerance:g} {unit}",
            f"HD95 {unit}",
            f"volume {size_unit}",
            f"reference {size_unit}",
        )
        for head in heads:
            table.add_column(head, justify="right")
        for value, agreement in self.rows:
            sizes = (agreement.voxels, agreement.reference_voxels)
            table.add_row(
                str(value),
                self.names.get(value, ""),
                f"{agreement.dice:.3f}",
                f"{agreement.surface_dice:.3f}",
                _distance(agreement.hd95),
                *(f"{volume_of(size, self.geometry)[0]:.2f}" for size in sizes),
            )
        if len(self.rows) > 1:
            table.add_section()
            means = (f"{self.mean('dice'):.3f}", f"{self.mean('surface_dice'):.3f}")
            table.add_row("", "mean", *means, _distance(self.mean("hd95")), "", "")
        return table


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _distance(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "none"
