"""What the Train panel has done outside of the window's thread: looking, and preparing a run.

Importing this module imports no torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from napari_openmedlab.errors import OpenMedLabError, SettingsError
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.training.cases import Case, CasesFound, check_cases
from napari_openmedlab.training.events import Event, Note
from napari_openmedlab.training.plan import Plan
from napari_openmedlab.training.pretrain import begin_pretraining
from napari_openmedlab.training.run import begin
from napari_openmedlab.training.settings import TrainSettings
from napari_openmedlab.training.unlabelled import check_scans, find_scans

__all__ = ["Begun", "Source", "beginning", "looking"]

Work = Callable[[Any, Monitor], Any]


@dataclass(frozen=True, eq=False)
class Source:
    """Where cases come from.

    Attributes
    ----------
    cases : tuple of Case
        Of open layers.
    left_out : tuple of (str, str)
        Of open layers, with the reason.
    images, labels : Path or None
        Folders instead; ``images`` may be a list (JSON, CSV), ``labels`` the same folder.
    listed : mapping of int to str
        Class names that a list gives.
    unlabelled : bool
        The scans in ``images`` are pre-trained on, without labels.
    """

    cases: tuple[Case, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    images: Path | None = None
    labels: Path | None = None
    listed: Mapping[int, str] = field(default_factory=dict)
    unlabelled: bool = False

    def found(self) -> Source:
        """Return the source with its cases; folders are looked into.

        Raises
        ------
        ReadError
            If a folder or list can't be read.
        """
        from napari_openmedlab.training.pairs import pair_folders, pairs_in_file

        if self.images is None:
            return self
        if self.unlabelled:
            return replace(self, cases=tuple(find_scans([self.images])))
        if self.images.is_file():
            cases, names = pairs_in_file(self.images)
            return replace(self, cases=tuple(cases), listed=names)
        pairs, left_out = pair_folders(self.images, self.labels or self.images)
        return replace(self, cases=tuple(pairs), left_out=tuple(left_out))


@dataclass(frozen=True, eq=False)
class Begun:
    """A run that waits to be trained.

    Attributes
    ----------
    folder : Path
    plan : Plan
    notes : tuple of str
        Sentences for the user.
    """

    folder: Path
    plan: Plan
    notes: tuple[str, ...]


def looking(source: Source, classes: Mapping[int, str] | None = None) -> Work:
    """Return work that looks at all cases; it returns :class:`.cases.CasesFound`.

    Parameters
    ----------
    source : Source
    classes : mapping, optional
        Only these, by value; the rest counts as background.
    """

    def work(_bench: Any, monitor: Monitor) -> CasesFound:
        return _looked(source, classes, monitor)

    return work


def beginning(
    source: Source, classes: Mapping[int, str] | None, settings: TrainSettings, folder: Path
) -> Work:
    """Return work that looks anew and prepares a run; it returns :class:`Begun`.

    Parameters
    ----------
    source : Source
    classes : mapping or None
        As for :func:`looking`.
    settings : TrainSettings
    folder : Path
        Of the run: a new one, whose parents are made. After an error it is gone again.
    """

    def work(_bench: Any, monitor: Monitor) -> Begun:
        found = _looked(source, classes, monitor)
        notes: list[str] = []

        def hear(event: Event) -> None:
            if isinstance(event, Note):
                notes.append(event.text)

        prepare = begin_pretraining if source.unlabelled else begin
        try:
            plan = prepare(found, settings, folder, monitor=monitor, on_event=hear)
        except OpenMedLabError:
            shutil.rmtree(folder, ignore_errors=True)  # scans half prepared, of use to nobody
            raise
        return Begun(folder, plan, tuple(notes))

    return work


def _looked(source: Source, classes: Mapping[int, str] | None, monitor: Monitor) -> CasesFound:
    ready = source.found()
    if not ready.cases:
        reasons = "; ".join(f"{name}: {why}" for name, why in ready.left_out[:5])
        raise SettingsError(
            "there is no labelled scan to learn from"
            + (f". {reasons}" if reasons else "; open one and label it, or choose folders")
        )
    if ready.unlabelled:
        return check_scans(ready.cases, monitor)
    chosen = dict(classes) if classes is not None else (dict(ready.listed) or None)
    return check_cases(
        ready.cases,
        chosen,
        others_as_background=classes is not None,
        left_out=ready.left_out,
        monitor=monitor,
    )
