"""A file on its way: what came so far, and what the server said about the whole."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from napari_openmedlab.errors import ReadError
from napari_openmedlab.models.checkpoints.disk import read_json, write_json
from napari_openmedlab.models.checkpoints.http_source import Answer

__all__ = ["Partial"]

_HASH = re.compile(r'"?([0-9a-f]{64})"?')


@dataclass(frozen=True)
class _Whole:
    """The file on the server, as its first answer described it.

    ``validator`` is its strong ETag or date: only with one can the rest be asked for safely.
    ``sha256`` is what the Hugging Face hub states for the file.
    """

    url: str = ""
    validator: str = ""
    total: int = 0
    sha256: str = ""


class Partial:
    """``NAME.part`` beside the target, and ``NAME.part.json`` with what it is a part of.

    Parameters
    ----------
    target : Path
        Where the whole file will lie. If one lies there from before, it is taken as a part
        that may be complete, and the server is asked whether it still is the same.
    url : str
        A part of another address is thrown away.
    """

    def __init__(self, target: Path, url: str) -> None:
        self.target, self.url = target, url
        self.path = target.with_name(f"{target.name}.part")
        self._notes = target.with_name(f"{target.name}.part.json")
        if target.exists() and not self.path.exists():
            os.replace(target, self.path)
        self.whole = self._read()
        if not self.size or self.whole.url != url or not self.whole.validator:
            self.discard()

    @property
    def size(self) -> int:
        """Bytes that are here."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    @property
    def total(self) -> int:
        """Bytes of the whole file; 0 if the server does not say."""
        return self.whole.total

    def headers(self) -> dict[str, str]:
        """Return what to ask for: the rest, or everything if the file has changed since."""
        if not self.size or not self.whole.validator:
            return {}
        return {"Range": f"bytes={self.size}-", "If-Range": self.whole.validator}

    def begin(self, answer: Answer) -> None:
        """Start anew with an answer that brings the whole file."""
        length = answer.headers.get("Content-Length", "")
        linked = _HASH.fullmatch(answer.linked.get("x-linked-etag", ""))
        self.path.write_bytes(b"")
        self.whole = _Whole(
            url=self.url,
            validator=_validator(answer.headers),
            total=int(length) if length.isdigit() else 0,
            sha256=linked[1] if linked else "",
        )
        write_json(self._notes, asdict(self.whole))

    def continues(self, answer: Answer) -> bool:
        """Whether an answer 206 brings just the bytes that come next."""
        found = re.fullmatch(
            r"bytes (\d+)-(\d+)/(\d+|\*)", answer.headers.get("Content-Range", "").strip()
        )
        if found is None or int(found[1]) != self.size:
            return False
        if self.whole.total and found[3] not in ("*", str(self.whole.total)):
            return False
        if not self.whole.total and found[3] != "*":
            self.whole = replace(self.whole, total=int(found[3]))
        return True

    def is_whole(self, answer: Answer) -> bool:
        """Whether an answer 416 (nothing after these bytes) says that all is here."""
        found = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", "").strip())
        said = {self.whole.total, int(found[1]) if found else 0} - {0}
        return self.size > 0 and said == {self.size}

    def discard(self) -> None:
        """Throw away what is here."""
        for path in (self.path, self._notes):
            path.unlink(missing_ok=True)
        self.whole = _Whole()

    def finish(self) -> Path:
        """Give the file its name; the notes stay, in case it can't be used at once."""
        with self.path.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(self.path, self.target)
        return self.target

    def _read(self) -> _Whole:
        with suppress(ReadError, TypeError, ValueError):
            found = read_json(self._notes)
            return _Whole(
                url=str(found["url"]),
                validator=str(found["validator"]),
                total=int(found["total"]),
                sha256=str(found["sha256"]),
            )
        return _Whole()


def _validator(headers: Mapping[str, str]) -> str:
    """Return what tells this state of the file from any other; a weak ETag does not."""
    etag = headers.get("ETag", "").strip()
    if etag.startswith('"'):
        return etag
    return "" if etag else headers.get("Last-Modified", "").strip()
