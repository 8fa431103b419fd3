"""``openmedlab info``, ``convert`` and ``evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_openmedlab.errors import GeometryError, ReadError

if TYPE_CHECKING:
    from rich.table import Table

    from napari_openmedlab.geometry.volume import Geometry, Volume
    from napari_openmedlab.io.sidecar import LabelInfo

__all__ = ["convert", "evaluate", "info"]

_SESSION_SUFFIX = ".omlsession"


def info(
    path: Annotated[Path, typer.Argument(help="Scan, mask, DICOM folder or session file.")],
    series: Annotated[
        str | None, typer.Option(help="Show this image, if there are several.")
    ] = None,
    index: Annotated[
        int | None, typer.Option(min=0, help="Show this volume of a 4D file, from 0.")
    ] = None,
) -> None:
    """Say what a file or folder holds: shape, voxel size, orientation, images to choose from."""
    from rich.console import Console

    from napari_openmedlab.io.api import list_images, read

    console = Console()
    if path.suffix == _SESSION_SUFFIX:
        console.print(_session_facts(path))
        return
    choices = list_images(path)
    if len(choices) > 1 and series is None and index is None:
        from rich.table import Table

        table = Table("--series", "image", "shape", "", title=f"{len(choices)} images")
        for choice in choices:
            shape = " x ".join(str(n) for n in choice.shape)
            table.add_row(choice.key, choice.title, shape, choice.detail)
        console.print(table)
        return
    console.print(_listing({**_facts(read(path, series=series, index=index)), **_names(path)}))


def _names(path: Path) -> dict[str, str]:
    """Return the objects of a mask, as far as a sidecar of ours names them."""
    from napari_openmedlab.io.sidecar import read_objects

    return {f"object {value}": info.name for value, info in read_objects(path).items()}


def _facts(volume: Volume) -> dict[str, str]:
    grid = volume.geometry
    rows = {
        "name": volume.name,
        "format": getattr(volume.source, "kind", ""),
        "modality": volume.modality,
        "voxel type": str(volume.array.dtype),
        **_grid_facts(grid),
        **{key: str(value) for key, value in volume.info.items() if _is_plain(value)},
    }
    for number, note in enumerate(volume.notes, start=1):
        rows[f"note {number}"] = note
    return rows


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, int, float))


def _grid_facts(grid: Geometry) -> dict[str, str]:
    size = " x ".join(f"{n * s:.1f}" for n, s in zip(grid.shape, grid.spacing, strict=True))
    rows = {
        "shape (z, y, x)": " x ".join(str(n) for n in grid.shape),
        "voxel size (z, y, x)": " x ".join(f"{s:.4g}" for s in grid.spacing) + f" {grid.unit}",
        "extent (z, y, x)": f"{size} {grid.unit}",
    }
    if grid.frame == "patient":
        centre = grid.to_world([(n - 1) / 2 for n in grid.shape])
        rows["orientation"] = f"{grid.codes} (shown), {grid.obliquity:.2f} degrees oblique"
        rows["centre (LPS mm)"] = ", ".join(f"{v:.1f}" for v in centre)
    else:
        rows["orientation"] = "image axes, no patient"
    if grid.is_sheared:
        rows["sheared"] = "yes: the slices are not stacked at right angles (gantry tilt)"
    return rows


def _session_facts(path: Path) -> Table:
    from napari_openmedlab.evaluation.metrics import volume_of
    from napari_openmedlab.session.store import load, saved_image

    saved = saved_image(path)
    session = load(path)
    rows = {
        "session of": saved.name,
        "image": str(saved.path) if saved.path is not None else "came from no file",
        "saved": f"{saved.saved:%Y-%m-%d %H:%M} UTC",
        **_grid_facts(saved.fingerprint.geometry),
    }
    for found in session.objects:
        size, unit = volume_of(found.voxels, saved.fingerprint.geometry)
        kinds = ", ".join(sorted(found.prompts.kinds())) or "no prompts"
        by = found.engine or "by hand"
        rows[f"object {found.id}"] = f"{found.name}: {size:.2f} {unit}, {by}, {kinds}"
    return _listing(rows)


def _listing(rows: Mapping[str, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        if value:
            table.add_row(Text(key), Text(value))
    return table


def convert(
    source: Annotated[Path, typer.Argument(help="Label map, or a session file.")],
    target: Annotated[Path, typer.Argument(help="Mask to write; its suffix names the format.")],
    one_file_per_object: Annotated[
        bool, typer.Option(help="Write one file per object instead of one label map.")
    ] = False,
) -> None:
    """Write a label map, or the masks of a session, in another format on the same grid.

    From NIfTI, NRRD, MetaImage, TIFF, OME-Zarr or a session; to .nii, .nii.gz, .nrrd, .nhdr,
    .mha, .mhd and, for images without a patient, .tif. Names and colours go along. Scans
    themselves are not converted.
    """
    from rich.console import Console

    from napari_openmedlab.cli.segment import check_target
    from napari_openmedlab.io.api import read_labels, write

    check_target(target)
    if source.suffix == _SESSION_SUFFIX:
        written = _convert_session(source, target, one_file_per_object)
    else:
        found, objects = read_labels(source)
        written = write(
            target,
            found.array,
            found,
            objects=objects,
            provenance={"converted_from": source.name},
            one_file_per_object=one_file_per_object,
        )
    for path in written:
        Console().print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)


def _convert_session(source: Path, target: Path, one_file_per_object: bool) -> tuple[Path, ...]:
    from napari_openmedlab.session.export import export
    from napari_openmedlab.session.replay import find_image
    from napari_openmedlab.session.store import load, saved_image

    # With its image: the masks belong on the exact grid of that file.
    session = load(source, find_image(saved_image(source), source))
    return export(session, target, one_file_per_object=one_file_per_object)


def evaluate(
    prediction: Annotated[Path, typer.Argument(help="Mask or label map to judge.")],
    reference: Annotated[Path, typer.Argument(help="Label map to judge it by, on the same grid.")],
    label: Annotated[
        list[int] | None,
        typer.Option("--label", "-l", min=1, help="Only this label value; may be repeated."),
    ] = None,
    by_name: Annotated[
        bool,
        typer.Option(help="Pair objects by their names in the sidecars, not by label value."),
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Of the surface Dice, in the image's unit (mm or um).")
    ] = 2.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two label maps: Dice, surface Dice, 95 % Hausdorff distance and volumes per label.

    HD95 is the larger of the two directed 95th percentiles of distances between surface voxels.
    """
    from rich.console import Console

    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.evaluation.metrics import compare_labels
    from napari_openmedlab.evaluation.report import Report
    from napari_openmedlab.io.api import read_labels

    with working("reading"):
        expected, names = read_labels(reference)
        found, found_names = read_labels(prediction)
    if difference := expected.geometry.difference(found.geometry):
        raise GeometryError(
            f"{prediction} does not lie on the grid of {reference}: {difference}. Both must be "
            "masks of the same scan"
        )
    labels = found.array
    if by_name:
        labels = _renumbered(labels, found_names, names, prediction, reference)
    with working("comparing"):
        pairs = compare_labels(
            labels, expected.array, expected.geometry, values=label, tolerance=tolerance
        )
        rows = list(pairs)
    texts = {v: i.name for v, i in (names if by_name else {**found_names, **names}).items()}
    report = Report(rows, texts, expected.geometry, tolerance)
    if as_json:
        import json

        typer.echo(json.dumps(report.as_json(), indent=2, allow_nan=False))
    else:
        Console().print(report.as_table())


def _renumbered(
    labels: Any,
    mine: Mapping[int, LabelInfo],
    theirs: Mapping[int, LabelInfo],
    prediction: Path,
    reference: Path,
) -> Any:
    """Return the labels with the values that the reference gives to objects of the same name."""
    import numpy as np

    for path, names in ((prediction, mine), (reference, theirs)):
        if not names:
            raise ReadError(f"{path} has no sidecar with names; compare by label value", path)
    values = {info.name: value for value, info in theirs.items()}
    out = np.zeros(labels.shape, dtype=np.uint32)
    for value, info in mine.items():
        if info.name in values:
            out[labels == value] = values[info.name]
    return out
