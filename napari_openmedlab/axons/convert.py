"""A volume of any kind into OME-Zarr, slab by slab; it can stop and go on."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from napari_openmedlab.axons.source import Source
from napari_openmedlab.errors import WriteError
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.io.atomic import sentence
from napari_openmedlab.io.ome_zarr_write import ImagePlace, build_levels, create_image
from napari_openmedlab.models.checkpoints.disk import size_text
from napari_openmedlab.models.contract import Monitor

__all__ = ["Conversion", "convert", "plan_conversion"]

_CHUNK = 128
_BUDGET = 768 * 2**20  # bytes of a slab held in memory
_LEAST_DEPTH = 16
_JOURNAL = ".openmedlab-conversion.jsonl"
_PYRAMID = 8 / 7


@dataclass(frozen=True)
class Conversion:
    """What a conversion takes.

    Attributes
    ----------
    chunks : tuple of int
        Of the OME-Zarr, (z, y, x).
    slabs : tuple of Box
        Read and written one after the other.
    disk : int
        Bytes at most; light-sheet data usually take about half.
    memory : int
        Bytes.
    """

    chunks: tuple[int, int, int]
    slabs: tuple[Box, ...]
    disk: int
    memory: int


def plan_conversion(source: Source) -> Conversion:
    """Return how a volume would be converted, and what room it takes."""
    depth, rows, columns = source.shape
    size = source.dtype.itemsize
    thick = _CHUNK
    while thick > _LEAST_DEPTH and thick * rows * columns * size > _BUDGET:
        thick //= 2
    high = rows
    while high > _CHUNK and thick * high * columns * size > _BUDGET:
        high = -(-high // 2 // _CHUNK) * _CHUNK
    chunks = (min(thick, depth), min(_CHUNK, rows), min(_CHUNK, columns))
    slabs = tuple(
        Box((z, y, 0), (min(z + thick, depth), min(y + high, rows), columns))
        for z in range(0, depth, thick)
        for y in range(0, rows, high)
    )
    disk = int(prod(source.shape) * size * _PYRAMID)
    return Conversion(chunks, slabs, disk, 2 * thick * high * columns * size)


def convert(source: Source, out: str | Path, monitor: Monitor) -> Path:
    """Write a volume as OME-Zarr 0.4 with coarser levels (means).

    Parameters
    ----------
    source : Source
        Its spacing is written; without one the image has no unit.
    out : path
        ``NAME.zarr``; must not exist, or be the beginning of the same conversion, which goes on.
    monitor : Monitor
        Hears of slabs; a cancel keeps what is written.

    Raises
    ------
    WriteError
        If ``out`` exists, or the disk is full or can't be written.
    ReadError
        If a slice can't be read; the text names it.
    """
    out = Path(out)
    planned = plan_conversion(source)
    facts = {"source": source.fingerprint(), "spacing": list(source.spacing or [])}
    done = _done(out, json.loads(json.dumps(facts)))
    free = shutil.disk_usage(_existing(out)).free
    left = planned.disk * (1 - len(done) / max(1, len(planned.slabs)))
    if free < left / 3:
        raise WriteError(
            f"{out.parent} has {size_text(free)} free and the conversion may take "
            f"{size_text(left)}; free some space or choose another folder",
            out,
        )
    affine = source.volume.geometry.affine
    known = source.volume.geometry.frame == "image" and source.volume.geometry.unit == "um"
    origin = tuple(float(v) for v in affine[[2, 1, 0], 3]) if known else (0.0, 0.0, 0.0)
    place = ImagePlace(source.spacing, (origin[0], origin[1], origin[2]))
    array = _opened(out, source, planned, place, facts)
    _slabs(source, array, out, planned, done, monitor)

    def step(number: int, total: int) -> None:
        monitor.step(number, total, "making coarser levels")

    build_levels(out, place, source.name, "mean", step)
    (out / _JOURNAL).unlink()
    return out


def _slabs(
    source: Source, array: Any, out: Path, planned: Conversion, done: set[int], monitor: Monitor
) -> None:
    for number, box in enumerate(planned.slabs):
        monitor.step(number, len(planned.slabs), f"slab {number + 1} of {len(planned.slabs)}")
        if number in done:
            continue
        values = source.read(box)
        try:
            array[box.slices] = values
            _note(out, {"slab": number})
        except OSError as error:
            raise WriteError(f"{sentence(error, out)}; what is written is kept", out) from error


def _opened(
    out: Path, source: Source, planned: Conversion, place: ImagePlace, facts: dict[str, Any]
) -> Any:
    import zarr

    if (out / _JOURNAL).exists():
        return zarr.open_group(str(out), mode="r+")["0"]
    kind = "uint8" if source.dtype.kind == "b" else source.dtype
    array = create_image(out, source.shape, kind, planned.chunks, place, source.name)
    _note(out, facts)
    return array


def _done(out: Path, facts: dict[str, Any]) -> set[int]:
    """Return the slabs that are written, or refuse a target that is something else."""
    if not out.exists():
        return set()
    lines = []
    journal = out / _JOURNAL
    if journal.is_file():
        for line in journal.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:  # cut off by a crash
                continue
    if not lines or lines[0] != facts:
        raise WriteError(
            f"{out} exists and is not the beginning of this conversion; choose another name, "
            "nothing was changed",
            out,
        )
    return {int(line["slab"]) for line in lines if "slab" in line}


def _note(out: Path, facts: dict[str, Any]) -> None:
    with (out / _JOURNAL).open("a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")


def _existing(path: Path) -> Path:
    there = path.absolute()
    while not there.exists():
        there = there.parent
    return there
