"""A saved session computed again: every engine is asked again, and the masks must agree."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import ReadError, SessionError
from napari_openmedlab.geometry.labels import LabelPatch
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.contract import Monitor, Progress, Request
from napari_openmedlab.session.export import export
from napari_openmedlab.session.history import EngineRun, Step
from napari_openmedlab.session.label_map import LabelMap, StartLabels
from napari_openmedlab.session.objects import OverlapRule
from napari_openmedlab.session.session import Session
from napari_openmedlab.session.snapshot import Snapshot
from napari_openmedlab.session.store import SavedImage, load, saved_image
from napari_openmedlab.session.workbench import Workbench

__all__ = ["Replayed", "find_image", "replay", "replay_steps"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replayed:
    """What came of a replay.

    Attributes
    ----------
    session : Session
        With the labels as computed now.
    computed : int
        Engine steps that were computed again.
    taken : int
        Steps whose label change was taken from the file: strokes by hand, removed objects.
    differences : tuple of str
        A sentence for each engine step that gave another mask than the saved one.
    """

    session: Session
    computed: int
    taken: int
    differences: tuple[str, ...]


def replay(
    path: str | Path,
    out: str | Path | None = None,
    volume: Volume | None = None,
    monitor: Monitor | None = None,
) -> Session:
    """Compute a saved session again and, if asked, export its labels.

    Parameters
    ----------
    path : path
        The session file.
    out : path, optional
        Label file to write, as ``io.api.write`` does.
    volume : Volume, optional
        The image; read from the place the session remembers if not given.
    monitor : Monitor, optional
        Progress (steps) and cancel.

    Raises
    ------
    SessionError
        If the image is another one, or if a mask came out differently; ``out`` is written
        before that is raised.
    ReadError
        If the session or its image can't be read.
    """
    result = replay_steps(path, volume, monitor)
    if out is not None:
        export(result.session, out)
    if result.differences:
        raise SessionError(
            f"the replay of {path} differs from the saved masks: {'; '.join(result.differences)}. "
            "Another version of an engine may have made them; the session file is unchanged"
        )
    return result.session


def replay_steps(
    path: str | Path, volume: Volume | None = None, monitor: Monitor | None = None
) -> Replayed:
    """As :func:`replay`, but return the differences instead of raising them."""
    monitor = monitor or Monitor()
    image = volume if volume is not None else find_image(saved_image(path), Path(path))
    saved = load(path, image)
    snapshot = saved.snapshot()
    labels = LabelMap(StartLabels(saved.labels.shape, snapshot.start_slices).to_array())
    bench = Workbench()
    differences: list[str] = []
    computed = taken = 0
    try:
        for number, step in enumerate(snapshot.past, start=1):
            monitor.step(number - 1, len(snapshot.past), step.text)
            if step.run is None or not step.run.repeatable:
                if step.change is not None:
                    labels.replay(step.change)
                    taken += 1
                continue
            inner = _inner_monitor(monitor, number - 1, len(snapshot.past))
            wrong = _compute(step, step.run, labels, bench, image, inner)
            computed += 1
            if wrong:
                differences.append(f"step {number}, {step.text}: {wrong} voxels")
        monitor.step(len(snapshot.past), len(snapshot.past), "done")
    finally:
        bench.release()
    if np.array_equal(labels.array, saved.labels):
        return Replayed(saved, computed, max(0, taken), tuple(differences))
    return Replayed(
        _recounted(snapshot, labels, image), computed, max(0, taken), tuple(differences)
    )


def _inner_monitor(outer: Monitor, done: int, total: int) -> Monitor:
    """Return a monitor for one engine step that reports to the whole and obeys its cancel."""

    def forward(progress: Progress) -> None:
        outer.step(done, total, progress.text)

    return Monitor(forward)


def _compute(
    step: Step,
    run: EngineRun,
    labels: LabelMap,
    bench: Workbench,
    image: Volume,
    monitor: Monitor,
) -> int:
    """Ask the engine again, write its answer, and return how many voxels differ."""
    value, others = step.object_id, [o.id for o in step.before.objects]
    request = Request(
        prompts=run.prompts,
        previous=labels.mask_of(value) if run.previous else None,
        previous_prompts=run.previous_prompts,
        obstacles=labels.mask_of_others(value, others) if run.obstacles else None,
        options=run.options,
    )
    answer = bench.predict(run.engine, image, request, monitor)
    patch = labels.mask_patch(
        value,
        answer.patch,
        keep=OverlapRule(run.overlap) is OverlapRule.KEEP,
        locked=[o.id for o in step.before.objects if o.locked],
    )
    found, expected = _over_both(step, patch, labels)
    labels.write(patch)
    return int(np.count_nonzero(found != expected))


def _over_both(
    step: Step, patch: LabelPatch, labels: LabelMap
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Return labels after the new and after the saved answer, in a box that holds both."""
    box = patch.box if step.change is None else patch.box.union(step.change.box)
    found = labels.patch(box).before.copy()
    expected = found.copy()
    found[patch.box.relative_to(box).slices] = patch.after
    if step.change is not None:
        moved = replace(step.change, box=step.change.box.relative_to(box))
        moved.write(expected)
    return found, expected


def _recounted(snapshot: Snapshot, labels: LabelMap, image: Volume) -> Session:
    """Return a session with the new labels and the old objects; the old steps fit no more."""
    session = Session(image, labels=labels.array)
    counts = session.count_voxels()
    objects = tuple(replace(o, voxels=counts.get(o.id, 0)) for o in snapshot.state.objects)
    state = replace(snapshot.state, objects=objects)
    fresh = session.snapshot()
    return Session.resume(replace(fresh, state=state, start_state=state), image)


def find_image(saved: SavedImage, session_file: Path) -> Volume:
    """Read the image of a session; among several in one place, the one that agrees.

    Raises
    ------
    ReadError
        If it is no longer there, never was a file, or none of several agrees.
    """
    from napari_openmedlab.io.api import list_images, read

    if saved.path is None:
        raise ReadError(
            f"the session {session_file} was made on '{saved.name}', which came from no file; "
            "give its image",
            session_file,
        )
    if not saved.path.exists():
        raise ReadError(
            f"the image of the session {session_file} is no longer at {saved.path}; give its "
            "new place",
            session_file,
        )
    choices = list_images(saved.path)
    if len(choices) == 1:
        return read(saved.path)
    for choice in choices:
        try:
            volume = read(saved.path, series=choice.key)
            saved.fingerprint.check(volume)
        except (ReadError, SessionError):  # a damaged neighbour must not hide the right one
            continue
        return volume
    raise ReadError(
        f"none of the {len(choices)} images in {saved.path} is the one of {session_file}",
        session_file,
    )
