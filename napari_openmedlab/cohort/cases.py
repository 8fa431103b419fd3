"""The scans in a folder: DICOM series and files mixed, each with a name and what speaks against it.

Only names and DICOM headers are looked at; the voxels are read when a case is worked on.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from napari_openmedlab.errors import ReadError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.io.suffixes import safe_name, stem_of, suffix_of

__all__ = ["JOB_FILE", "Case", "find_cases", "read_case", "stamp_of"]

JOB_FILE = "cohort.json"
"""Lies in a folder of results; such a folder is never searched for scans."""

_FILES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_FOLDERS = (".zarr",)
_FEWEST = 4  # slices of a series that counts as a scan; fewer are scouts and single images
_LONGEST = 48  # characters of a case's name


@dataclass(frozen=True)
class Case:
    """One scan of a cohort.

    Attributes
    ----------
    id : str
        Unique in the cohort and part of file names; made of the path below the folder.
    path : Path
        The file or folder to read. For a DICOM series one of its files, or the folder above if
        the series lies in several.
    series : str or None
        Which series, if the path leaves a choice.
    title : str
        Where it lies, below the folder, for the user.
    problem : str
        Why it isn't worked on; empty for a scan.
    """

    id: str
    path: Path
    series: str | None = None
    title: str = ""
    problem: str = ""


def find_cases(folder: str | Path, exclude: Sequence[str | Path] = ()) -> tuple[Case, ...]:
    """Return all scans in a folder and below it, in the order of their paths.

    Files that are no scans are passed over, and so are label maps of ours, folders with results
    of a cohort, hidden files and folders. What claims to be a scan and is none stays in the list
    with its reason.

    Parameters
    ----------
    folder : path
        One file is a cohort of one.
    exclude : sequence of path
        Files and folders that are left alone (the results, the template library).

    Raises
    ------
    ReadError
        If there is no such folder, it can't be opened, or it holds no scan.
    """
    root = Path(folder)
    if not root.exists():
        raise ReadError(f"{root} does not exist; check the name and the drive", root)
    if root.is_file():
        return _named([Case("", root, None, root.name)])
    if not os.access(root, os.R_OK | os.X_OK):
        raise ReadError(f"the folder {root} can't be opened: no permission to read it", root)
    left_alone = {Path(each).resolve() for each in exclude}
    found: list[Case] = []
    for place, names in _walk(root, left_alone):
        found += _cases_in(place, names, root)
    found = _joined(found, root)
    if not found:
        raise ReadError(
            f"{root} holds no scan: no DICOM series, NIfTI, NRRD, MetaImage or OME-Zarr in it or "
            "below it",
            root,
        )
    return _named(sorted(found, key=lambda case: (_natural(case.title), case.series or "")))


def read_case(case: Case) -> Volume:
    """Read the scan of a case.

    Raises
    ------
    ReadError
        If it can't be read, or the case was listed with a problem.
    """
    from napari_openmedlab.io.api import read

    if case.problem:
        raise ReadError(case.problem, case.path)
    return read(case.path, series=case.series)


def stamp_of(case: Case) -> str:
    """Return a hash of names, sizes and times of a case's files: a quick look for changes.

    An empty text for files that can't be looked at.
    """
    digest = hashlib.blake2b(digest_size=16)
    try:
        for path in _files_of(case):
            status = path.stat()
            digest.update(f"{path.name}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    except OSError:
        return ""
    return digest.hexdigest()


def _files_of(case: Case) -> Iterator[Path]:
    """Yield the files a case may consist of, in a stable order."""
    path = case.path
    if path.is_dir():
        for place, folders, names in os.walk(path):
            folders.sort()
            yield from (Path(place, name) for name in sorted(names))
    elif suffix_of(path) in (".mhd", ".nhdr") or case.series is not None:
        same = stem_of(path) if case.series is None else ""
        beside = sorted(p for p in path.parent.iterdir() if p.is_file())
        yield from (p for p in beside if p.name.startswith(same))
    else:
        yield path


def _walk(root: Path, left_alone: set[Path]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder with the names in it that may be scans; OME-Zarr images count as names."""
    for place, folders, names in os.walk(root):
        here = Path(place)
        if JOB_FILE in names and here != root:
            folders.clear()
            continue
        kept = [n for n in sorted(folders) if _looked_at(here / n, left_alone)]
        images = [n for n in kept if n.lower().endswith(_FOLDERS)]
        folders[:] = [n for n in kept if n not in images]
        yield here, images + [n for n in sorted(names) if _looked_at(here / n, left_alone)]


def _looked_at(path: Path, left_alone: set[Path]) -> bool:
    return not path.name.startswith(".") and path.resolve() not in left_alone


def _cases_in(place: Path, names: Sequence[str], root: Path) -> list[Case]:
    """Return the cases that lie directly in a folder."""
    from napari_openmedlab.io.sidecar import read_objects

    found, others = [], []
    for path in (place / name for name in names):
        if suffix_of(path) in _FILES or path.name.lower().endswith(_FOLDERS):
            if not read_objects(path):
                found.append(Case("", path, None, path.relative_to(root).as_posix()))
        else:
            others.append(path)
    return found + _series_in(place, others, root)


def _series_in(place: Path, files: Sequence[Path], root: Path) -> list[Case]:
    """Return a case for each DICOM series in a folder, and one for files that are damaged."""
    from napari_openmedlab.io.dicom_files import is_dicom_file, scan
    from napari_openmedlab.io.dicom_series import find_stacks

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom")  # it may quote patient data
        found = scan((path, is_dicom_file(path)) for path in files if path.name != "DICOMDIR")
        stacks = find_stacks(found.slices)
    where = place.relative_to(root).as_posix()
    cases = []
    for stack in stacks:
        first, count = stack.slices[0], max(len(stack.slices), 1)
        number = first.series_number or "?"
        title = where if len(stacks) == 1 and where != "." else f"{where}, series {number}"
        title = title.removeprefix("., ")
        short = (
            f"{count} slice{'s' if count > 1 else ''} only: a scout or a single image, no scan"
            if count < _FEWEST
            else ""
        )
        path = min(plane.path for plane in stack.slices)
        cases.append(Case("", path, stack.key, title, short))
    if found.damaged and not stacks:
        names = ", ".join(path.name for path in found.damaged[:3])
        reason = f"{names} can't be read as DICOM: damaged or cut short; export or copy again"
        cases.append(Case("", found.damaged[0], None, f"{where} (damaged)", reason))
    return cases


def _joined(cases: Sequence[Case], root: Path) -> list[Case]:
    """Put a series that lies in several folders side by side together again."""
    groups: dict[tuple[str, Path], list[Case]] = {}
    rest: list[Case] = []
    for case in cases:
        if case.series is None:
            rest.append(case)
        else:
            groups.setdefault((case.series, case.path.parent.parent), []).append(case)
    for (_, parent), members in groups.items():
        if len(members) == 1 or not parent.is_relative_to(root):
            rest += members
            continue
        where = parent.relative_to(root).as_posix()
        title = members[0].title if where == "." else where
        rest.append(replace(members[0], path=parent, title=title, problem=""))
    return rest


def _named(cases: Sequence[Case]) -> tuple[Case, ...]:
    """Give every case a name of its own that does not depend on the number of cases."""
    taken: set[str] = set()
    named = []
    for case in cases:
        plain = re.sub(r"[\\/]+", "__", _without_suffix(case.title))
        name = safe_name(plain)
        mark = hashlib.blake2b(f"{case.title}|{case.series}".encode(), digest_size=4).hexdigest()
        if len(plain) > _LONGEST or name.casefold() in taken:
            name = f"{name[:_LONGEST]}-{mark}"
        taken.add(name.casefold())
        named.append(replace(case, id=name))
    return tuple(named)


def _without_suffix(title: str) -> str:
    suffix = suffix_of(Path(title))
    return title[: -len(suffix)] if suffix in (*_FILES, *_FOLDERS, ".ome.zarr") else title


def _natural(text: str) -> list[tuple[int, int | str]]:
    """Sort key by which scan2 comes before scan10."""
    parts = re.split(r"(\d+)", text.casefold())
    return [(0, int(p)) if p.isdigit() else (1, p) for p in parts]
