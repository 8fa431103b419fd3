"""Which scan goes with which label file: by name in folders, or as a list says."""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from napari_openmedlab.errors import ReadError
from napari_openmedlab.io.suffixes import stem_of, suffix_of
from napari_openmedlab.training.cases import Case

__all__ = ["pair_folders", "pairs_in_file"]

_SCANS = (
    ".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".tif", ".tiff", ".ome.tif", ".ome.tiff",
    ".zarr", ".ome.zarr",
)  # fmt: skip
_CHANNEL = re.compile(r"_(?P<number>\d{4})$")  # nnU-Net's, at the end of a scan's name
_LABEL_END = re.compile(r"[-_. ](seg|segs|segmentation|label|labels|mask|masks|gt|truth)$", re.I)

LeftOut = list[tuple[str, str]]


def pair_folders(images: Path, labels: Path) -> tuple[list[Case], list[tuple[str, str]]]:
    """Pair the scans of one folder with the label files of another by their names.

    ``liver_01_0000.nii.gz`` (nnU-Net's channel number) goes with ``liver_01.nii.gz``; endings
    such as ``_seg``, ``_label``, ``_mask`` or ``_gt`` of a label file's name are not compared.
    In one folder for both, files with such an ending are the labels. A subfolder of ``images``
    (a DICOM series) is a scan too.

    Parameters
    ----------
    images, labels : Path

    Returns
    -------
    cases : list of Case
        By name.
    left_out : list of (str, str)
        Name and reason: no partner, or two files with one case name.

    Raises
    ------
    ReadError
        If a folder is missing or holds nothing of use.
    """
    same = images.resolve() == labels.resolve()
    scans = [p for p in _scans(images) if not (same and _LABEL_END.search(_stem(p)))]
    masks = [p for p in _scans(labels) if not same or _LABEL_END.search(_stem(p))]
    if not scans or not masks:
        lacking, folder = ("scan", images) if not scans else ("label file", labels)
        raise ReadError(f"there is no {lacking} in {folder}", folder)
    by_name = _grouped(masks, lambda path: _LABEL_END.sub("", _stem(path)).casefold())
    cases: list[Case] = []
    left_out: LeftOut = []
    groups = _grouped(scans, lambda path: _case_of(path, by_name))
    for key, found in sorted(groups.items()):
        stem = _stem(found[0])
        name = stem if stem.casefold() == key or not key else _CHANNEL.sub("", stem)
        partners = by_name.pop(key, [])
        problem = _problem(found, partners)
        if problem:
            left_out.append((name, problem))
        else:
            cases.append(Case(name, found[0], partners[0]))
    left_out += [(_stem(p[0]), "there is no scan of that name") for p in by_name.values()]
    return cases, left_out


def pairs_in_file(path: Path) -> tuple[list[Case], dict[int, str]]:
    """Read pairs and class names from a JSON or CSV file; paths in it are relative to it.

    JSON: ``{"cases": [{"name": ..., "image": ..., "labels": ...}], "classes": {"1": "liver"}}``,
    or only the list of cases. CSV: columns ``image``, ``labels`` and, if wished, ``name``.

    Parameters
    ----------
    path : Path
        ``.json`` or ``.csv``.

    Returns
    -------
    cases : list of Case
    classes : dict of int to str
        Empty if the file names none.

    Raises
    ------
    ReadError
        If the file is missing or is not of this form.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".csv":
            rows: Any = list(csv.DictReader(text.splitlines()))
            classes: Any = {}
        else:
            rows = json.loads(text)
            classes = rows.get("classes", {}) if isinstance(rows, Mapping) else {}
            rows = rows.get("cases") if isinstance(rows, Mapping) else rows
        names = {int(value): str(name) for value, name in classes.items()}
        return [_case(row, number, path) for number, row in enumerate(rows, 1)], names
    except OSError as error:
        raise ReadError(f"{path} can't be read: {error.strerror or error}", path) from error
    except (ValueError, TypeError, AttributeError, KeyError, csv.Error) as error:
        raise ReadError(
            f"{path} is no list of cases: it needs 'image' and 'labels' for each, as columns of a "
            'CSV or as {"cases": [{"image": ..., "labels": ...}]} in JSON',
            path,
        ) from error


def _case(row: Any, number: int, path: Path) -> Case:
    image, labels = (row[key].strip() for key in ("image", "labels"))
    if not image or not labels:
        raise ReadError(f"case {number} in {path} has no image or no labels", path)
    scan = path.parent / image
    name = (row.get("name") or "").strip() or _CHANNEL.sub("", _stem(scan))
    return Case(name, scan, path.parent / labels)


def _scans(folder: Path) -> list[Path]:
    """Return what may be scans in a folder, by name."""
    if not folder.is_dir():
        raise ReadError(f"{folder} is no folder; give one with scans", folder)
    visible = (p for p in sorted(folder.iterdir()) if not p.name.startswith("."))
    return [p for p in visible if suffix_of(p) in _SCANS or _is_series(p)]


def _is_series(path: Path) -> bool:
    return path.is_dir() and any(path.iterdir())


def _stem(path: Path) -> str:
    return stem_of(path) if suffix_of(path) in _SCANS else path.name


def _case_of(path: Path, masks: Mapping[str, Any]) -> str:
    """Return the name under which a scan's labels are looked for."""
    stem = _stem(path).casefold()
    return stem if stem in masks else _CHANNEL.sub("", stem)


def _grouped(paths: Iterable[Path], key: Any) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        groups[key(path)].append(path)
    return dict(groups)


def _problem(scans: list[Path], masks: list[Path]) -> str:
    if not masks:
        return "there is no label file of that name"
    if len(masks) > 1:
        return f"several label files have this name: {', '.join(p.name for p in masks)}"
    if len(scans) > 1:
        channels = all(_CHANNEL.search(_stem(path)) for path in scans)
        what = (
            "it has several channels, but one can be learnt from" if channels else "several scans"
        )
        return f"{what}: {', '.join(path.name for path in scans)}"
    return ""
