"""A picture of a scan with mask outlines in three planes; Pillow and NumPy only, no window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from napari_openmedlab.errors import WriteError
from napari_openmedlab.geometry.volume import Volume

__all__ = ["LegendRow", "draw_picture", "save_picture", "window_of"]

Colour = tuple[float, float, float]

_HEIGHT = 620  # pixels of the axial panel
_MARGIN = 14
_SOFT_TISSUE_HU = (-160.0, 240.0)
_LETTERS = {0: ("A", "P", "R", "L"), 1: ("S", "I", "R", "L"), 2: ("S", "I", "A", "P")}
"""Top, bottom, left, right of a plane cut across axis 0, 1 or 2 of an I, P, L array."""
_TITLES = {0: "axial", 1: "coronal", 2: "sagittal"}


@dataclass(frozen=True)
class LegendRow:
    """One line of the legend."""

    text: str
    colour: Colour


def window_of(volume: Volume) -> tuple[float, float]:
    """Return the grey window: soft tissue for CT, else the 1st to 99.5th percentile."""
    if volume.modality == "CT":
        return _SOFT_TISSUE_HU
    step = tuple(slice(None, None, max(1, n // 64)) for n in volume.geometry.shape)
    low, high = np.nanpercentile(np.asarray(volume.array[step], dtype=np.float64), [1, 99.5])
    return float(low), float(max(high, low + 1e-6))


def draw_picture(
    volume: Volume,
    labels: NDArray[Any],
    colours: Mapping[int, Colour],
    legend: Sequence[LegendRow],
) -> Image.Image:
    """Return the three planes that show most of the objects, with outlines and a legend.

    Parameters
    ----------
    volume : Volume
    labels : ndarray of int, shape of the volume
    colours : mapping of int to (red, green, blue) in 0..1
        Values without one are not drawn.
    legend : sequence of LegendRow
    """
    values = sorted(colours)
    spacing = volume.geometry.spacing
    size_mm = [n * s for n, s in zip(volume.geometry.shape, spacing, strict=True)]
    scale = min(_HEIGHT / size_mm[1], 900 / size_mm[2])
    window = window_of(volume)
    panels = []
    for axis in range(3):
        index = _best_slice(labels, values, axis)
        image = np.asarray(np.asarray(volume.array).take(index, axis=axis), dtype=np.float64)
        panel = _panel(image, labels.take(index, axis=axis), colours, window)
        rest = [a for a in range(3) if a != axis]
        pixels = (max(1, round(size_mm[rest[1]] * scale)), max(1, round(size_mm[rest[0]] * scale)))
        panels.append(_outlined(panel, pixels, axis, index, volume))
    return _arranged(panels, legend)


def save_picture(picture: Image.Image, path: Path) -> None:
    """Write a PNG; the old file stays until the new one is complete."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        picture.save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise WriteError(
            f"the picture {path} could not be written: {error.strerror or error}", path
        ) from error


def _best_slice(labels: NDArray[Any], values: Sequence[int], axis: int) -> int:
    """Return the slice that shows most objects, then most of each object's largest cut."""
    others = tuple(a for a in range(3) if a != axis)
    score = np.zeros(labels.shape[axis])
    for value in values:
        area = (labels == value).sum(axis=others, dtype=np.float64)
        if area.max() > 0:
            score += np.sqrt(area / area.max())
    return int(score.argmax()) if score.any() else labels.shape[axis] // 2


@dataclass(frozen=True)
class _Panel:
    grey: NDArray[np.uint8]
    labels: NDArray[Any]
    colours: Mapping[int, Colour]


def _panel(
    image: NDArray[np.float64],
    labels: NDArray[Any],
    colours: Mapping[int, Colour],
    window: tuple[float, float],
) -> _Panel:
    low, high = window
    grey = np.nan_to_num(np.clip((image - low) / (high - low), 0, 1)) * 255
    return _Panel(grey.astype(np.uint8), labels, colours)


def _outlined(
    panel: _Panel, pixels: tuple[int, int], axis: int, index: int, volume: Volume
) -> Image.Image:
    """Return a panel at its size in pixels, with outlines two pixels wide and letters."""
    grey = Image.fromarray(panel.grey).resize(pixels, Image.Resampling.BICUBIC)
    out = np.stack([np.asarray(grey)] * 3, axis=-1)
    for value, colour in panel.colours.items():
        mask = Image.fromarray((panel.labels == value).astype(np.uint8) * 255)
        # Smooth enlargement, then the half level: an outline without stair steps.
        inside = np.asarray(mask.resize(pixels, Image.Resampling.BICUBIC)) > 127
        edge = inside & ~_eroded(_eroded(inside))
        out[edge] = np.rint(np.array(colour) * 255).astype(np.uint8)
    picture = Image.fromarray(out)
    pen = ImageDraw.Draw(picture)
    if volume.geometry.frame == "patient":
        _write_letters(pen, picture.size, _LETTERS[axis])
        title = _TITLES[axis]
    else:
        title = f"across axis {'zyx'[axis]}"
    pen.text(
        (8, picture.height - 8),
        f"{title}, slice {index}",
        fill="#b8b8b8",
        font=_font(15),
        anchor="ls",
    )
    return picture


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _write_letters(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], letters: tuple[str, str, str, str]
) -> None:
    width, height = size
    top, bottom, left, right = letters
    places = (
        (top, (width // 2, 6), "mt"),
        (bottom, (width // 2, height - 6), "mb"),
        (left, (8, height // 2), "lm"),
        (right, (width - 8, height // 2), "rm"),
    )
    for letter, place, anchor in places:
        pen.text(
            place,
            letter,
            fill="#ffd75f",
            font=_font(22),
            anchor=anchor,
            stroke_width=2,
            stroke_fill="black",
        )


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _arranged(panels: Sequence[Image.Image], legend: Sequence[LegendRow]) -> Image.Image:
    """Return coronal beside axial, sagittal and the legend below."""
    axial, coronal, sagittal = panels
    line = 30
    lower = max(sagittal.height, line * len(legend) + _MARGIN)
    text_left = 2 * _MARGIN + sagittal.width
    width = max(3 * _MARGIN + axial.width + coronal.width, text_left + 420)
    height = 3 * _MARGIN + max(axial.height, coronal.height) + lower
    sheet = Image.new("RGB", (width, height), "#101010")
    sheet.paste(axial, (_MARGIN, _MARGIN))
    sheet.paste(coronal, (2 * _MARGIN + axial.width, _MARGIN))
    below = 2 * _MARGIN + max(axial.height, coronal.height)
    sheet.paste(sagittal, (_MARGIN, below))
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(legend):
        top = below + _MARGIN // 2 + number * line
        fill = tuple(round(c * 255) for c in row.colour)
        pen.rectangle((text_left, top + 4, text_left + 16, top + 20), fill=fill)
        pen.text((text_left + 28, top + 12), row.text, fill="white", font=_font(18), anchor="lm")
    return sheet
