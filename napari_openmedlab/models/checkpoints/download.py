"""Fetch published files: on the user's click only, resumable, checked, then imported."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from napari_openmedlab.errors import CheckpointError, DownloadError, WriteError
from napari_openmedlab.io.atomic import sentence
from napari_openmedlab.models.checkpoint_spec import CheckpointSpec
from napari_openmedlab.models.checkpoints.disk import hash_file, require_space, size_text
from napari_openmedlab.models.checkpoints.http_source import (
    Answer,
    Interrupted,
    Request,
    mirrored,
)
from napari_openmedlab.models.checkpoints.locks import locked
from napari_openmedlab.models.checkpoints.partial import Partial
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.checkpoints.settings import ModelSettings, read_settings
from napari_openmedlab.models.checkpoints.store import ModelStore, require_torch
from napari_openmedlab.models.contract import Monitor

__all__ = ["Patience", "Source", "by_hand", "discard", "download", "fetch", "unfinished"]

_FOLDER = ".downloads"
_FOR_NOW = {408, 425, 429, 500, 502, 503, 504}  # answers that may be another in a moment
_WORTH = 2**20  # bytes after which an attempt counts as progress
_LONGEST_PAUSE = 60.0
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")


@dataclass(frozen=True)
class Source:
    """A file to be fetched.

    Attributes
    ----------
    url : str
    title : str
        For messages.
    page : str
        Where a person can get it instead.
    sha256 : str
        If one is published.
    size : int
        Bytes, if published; else 0.
    """

    url: str
    title: str
    page: str = ""
    sha256: str = ""
    size: int = 0

    @property
    def way_out(self) -> str:
        """What the user can do when the download can't work."""
        return f"; open {self.page} in your browser, save the file and import it" * bool(self.page)


@dataclass(frozen=True)
class Patience:
    """How often to try: ``attempts`` in a row without progress, ``pause`` s, doubled each time."""

    attempts: int = 5
    pause: float = 1.0


def by_hand(spec: CheckpointSpec) -> str:
    """Return what a person does to get a file that has no stable link."""
    named = f"save {spec.file}" if spec.file else "save the file of weights"
    return (
        f"{spec.title} can't be fetched by a program, it has no stable link. Open {spec.page} in "
        f"your browser, {named}, then import it as '{spec.id}' (openmedlab models import FILE "
        f"--as {spec.id}, or drop it on the Models panel)"
    )


def download(
    spec: CheckpointSpec,
    store: ModelStore,
    settings: ModelSettings | None = None,
    monitor: Monitor | None = None,
    patience: Patience | None = None,
) -> Record:
    """Fetch a published checkpoint and import it. The caller has shown its licence.

    A model that is here already is not fetched again. What came before a cancel or a lost
    connection stays in the model folder, and the next call goes on from there.

    Parameters
    ----------
    spec : CheckpointSpec
    store : ModelStore
    settings : ModelSettings, optional
        For mirror and proxy; as stored if not given.
    monitor : Monitor, optional
        Hears of bytes done of bytes in all, and may cancel.
    patience : Patience, optional

    Returns
    -------
    Record

    Raises
    ------
    DownloadError
        If the file has no stable link, or can't be fetched.
    CheckpointError
        If what came is not the checkpoint, or torch is not installed.
    WriteError
        If the disk is full, or another program fetches the same file.
    Cancelled
        After a cancel.
    """
    if spec.how != "direct":
        raise DownloadError(by_hand(spec))
    require_torch()
    for record in store.records():
        if record.checkpoint == spec.id:
            return record
    store.require_free(spec.id)
    settings, monitor = settings or read_settings(), monitor or Monitor()
    source = Source(
        mirrored(spec.url, settings.mirror), spec.title, spec.page, spec.sha256, spec.size
    )
    folder = store.folder / _FOLDER / spec.id
    target = folder / (Path(spec.file).name or "weights")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(sentence(error, store.folder), folder) from error
    busy = f"{spec.title} is being downloaded by another program or panel; wait for it"
    with locked(folder.parent / f"{spec.id}.lock", busy):
        require_space(folder, _still_needed(spec, folder), f"downloading {spec.title}")
        fetch(source, target, settings.proxy, monitor, patience)
        try:
            record = store.import_file(target, as_=spec.id, monitor=monitor)
        except CheckpointError as error:
            # Not what it should be: going on from there would bring the same again.
            shutil.rmtree(folder, ignore_errors=True)
            raise CheckpointError(
                f"{error}. The downloaded file was deleted{source.way_out}", target
            ) from error
        shutil.rmtree(folder, ignore_errors=True)
    return record


def unfinished(store: ModelStore) -> dict[str, int]:
    """Return the ids of checkpoints whose download was left half-way, with the bytes here."""
    sizes = {}
    for path in sorted((store.folder / _FOLDER).glob("*/*.part")):
        with suppress(OSError):  # just finished by another program
            sizes[path.parent.name] = path.stat().st_size
    return sizes


def discard(checkpoint_id: str, store: ModelStore) -> None:
    """Delete what came of a download that was left half-way.

    Raises
    ------
    WriteError
        If it goes on in another program.
    """
    folder = store.folder / _FOLDER / checkpoint_id
    if checkpoint_id not in unfinished(store):
        return
    busy = f"{checkpoint_id} is being downloaded by another program or panel; cancel it there"
    with locked(folder.parent / f"{checkpoint_id}.lock", busy):
        shutil.rmtree(folder, ignore_errors=True)


def _still_needed(spec: CheckpointSpec, folder: Path) -> int:
    """Return the bytes that download and conversion will take, as far as that is known."""
    here = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return max(0, (spec.size or spec.stored_size) - here) + spec.stored_size


def fetch(
    source: Source,
    target: Path,
    proxy: str = "",
    monitor: Monitor | None = None,
    patience: Patience | None = None,
) -> Path:
    """Fetch a file, going on where an earlier attempt ended.

    Parameters
    ----------
    source : Source
    target : Path
        In an existing folder. ``NAME.part`` and ``NAME.part.json`` lie beside it on the way.
        One call at a time for one target.
    proxy : str
        ``""``: the environment's.
    monitor : Monitor, optional
    patience : Patience, optional

    Returns
    -------
    Path
        ``target``: complete, and with the right hash if one is known.

    Raises
    ------
    DownloadError
        If the server refuses, sends something else, or fails again and again.
    WriteError
        If the disk is full or refuses.
    Cancelled
        After a cancel.
    """
    monitor, patience = monitor or Monitor(), patience or Patience()
    try:
        part = Partial(target, source.url)
        _until_complete(source, part, proxy, monitor, patience)
        _require_hash(source, part, monitor)
        return part.finish()
    except (CheckpointError, WriteError):
        raise
    except OSError as error:
        raise WriteError(sentence(error, target.parent), target) from error


def _until_complete(
    source: Source, part: Partial, proxy: str, monitor: Monitor, patience: Patience
) -> None:
    failed = 0
    while True:
        before = part.size
        try:
            _attempt(source, part, proxy, monitor)
        except Interrupted as reason:
            failed = 0 if part.size - before >= _WORTH else failed + 1
            if failed >= patience.attempts:
                raise DownloadError(
                    f"{source.title} could not be fetched: {reason} ({failed} attempts). Try again "
                    f"later, it goes on from {size_text(part.size)}{source.way_out}",
                ) from reason
            pause = max(reason.pause, patience.pause * 2 ** max(failed - 1, 0))
            _wait(min(pause, _LONGEST_PAUSE), str(reason), part, monitor)
        else:
            return


def _wait(seconds: float, reason: str, part: Partial, monitor: Monitor) -> None:
    """Let some time pass; a cancel ends it."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        monitor.step(part.size, part.total, f"{reason}; trying again in {left:.0f} s")
        time.sleep(min(0.1, left))
    monitor.step()


def _attempt(source: Source, part: Partial, proxy: str, monitor: Monitor) -> None:
    """Ask for what is missing and add it to the part."""
    with Request(source.url, part.headers(), proxy, monitor) as request:
        answer = request.answer()
        if answer.status == 416 and part.is_whole(answer):
            return
        _require_file(source, answer)
        if answer.status == 200:
            part.begin(answer)
        elif answer.status != 206 or not part.continues(answer):
            part.discard()
            raise Interrupted("the server could not go on where it stopped")
        if source.size and part.total and part.total != source.size:
            total = part.total
            part.discard()
            raise DownloadError(
                f"{source.title}: the server offers {total} bytes, published are {source.size}; "
                f"it is another file{source.way_out}"
            )
        require_space(part.path.parent, max(0, part.total - part.size), "the download")
        _receive(source, part, request, monitor)
    if part.total and part.size != part.total:
        raise Interrupted("the connection ended too early")


def _require_file(source: Source, answer: Answer) -> None:
    """Raise unless the answer brings bytes of a file."""
    status = answer.status
    if status in _FOR_NOW:
        pause = answer.headers.get("Retry-After", "")
        seconds = float(pause) if pause.isdigit() else 0.0
        raise Interrupted(f"the server is busy or broken (answer {status})", seconds)
    if status in (200, 206):
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind in ("text/html", "application/xhtml+xml"):
            raise DownloadError(_page_came(source))
        if answer.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
            raise DownloadError(
                f"{source.title}: the server sends a packed file though it was asked not to"
                f"{source.way_out}"
            )
        return
    if status == 416:
        return
    reason = {
        401: "asks for a login (401)",
        403: "refuses the file (403): it may ask for a login, or your network blocks it",
        404: "has no such file (404): its publisher may have moved it",
        407: "can't be reached: the proxy asks for a name and password (407)",
        410: "has no such file any more (410)",
        451: "may not give it out in your country (451)",
    }.get(status, f"gave an answer that is not understood ({status})")
    raise DownloadError(f"{source.title} can't be fetched: the server {reason}{source.way_out}")


def _receive(source: Source, part: Partial, request: Request, monitor: Monitor) -> None:
    began, before, total = time.monotonic(), part.size, part.total
    done = before
    with part.path.open("ab") as file:
        for piece in request.pieces():
            if not done and piece.lstrip()[:9].lower().startswith(_PAGES):
                raise DownloadError(_page_came(source))
            file.write(piece)
            done += len(piece)
            seconds = max(time.monotonic() - began, 0.1)
            speed = f"{size_text((done - before) / seconds)}/s"
            of = f" of {size_text(total)}" if total else ""
            monitor.step(done, total, f"{size_text(done)}{of}, {speed}")


def _page_came(source: Source) -> str:
    return (
        f"{source.title}: a web page came instead of the file. Your network may block the download "
        f"or ask for a login{source.way_out}"
    )


def _require_hash(source: Source, part: Partial, monitor: Monitor) -> None:
    expected = source.sha256 or part.whole.sha256
    if not expected:
        return
    found = hash_file(part.path, monitor, "checking the download")
    if found != expected:
        part.discard()
        raise DownloadError(
            f"{source.title}: what came is not the published file (sha256 {found}, published is "
            f"{expected}). It was deleted; download it again{source.way_out}"
        )
