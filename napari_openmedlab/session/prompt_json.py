"""Values out of a JSON file, checked one by one, so that an error names the file and the key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_openmedlab.errors import PromptError, ReadError
from napari_openmedlab.geometry.prompts import Point

__all__ = ["JsonFile", "flip_ras"]


def flip_ras(point: Point) -> Point:
    """Turn RAS into LPS or back; signs alone change, so this is exact."""
    return 0.0 - point[0], 0.0 - point[1], point[2]


@dataclass(frozen=True)
class JsonFile:
    """A JSON file and checks on its values.

    Attributes
    ----------
    path : Path
    content : mapping
        The outermost object.
    """

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> JsonFile:
        """Read a file, or raise :class:`ReadError` if it is missing or not a JSON object."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ReadError(f"there is no prompt file {path}", path) from error
        except OSError as error:
            raise ReadError(f"the prompt file {path} can't be read: {error.strerror}") from error
        except (UnicodeDecodeError, ValueError) as error:
            raise ReadError(f"the prompt file {path} is not valid JSON: {error}", path) from error
        if not isinstance(content, dict):
            raise ReadError(f"the prompt file {path} does not hold a JSON object", path)
        return cls(path, content)

    def wrong(self, key: str, expected: str, got: object) -> PromptError:
        """Return the error for a value that is not what it should be."""
        return PromptError(f"in {self.path}, '{key}' must be {expected}, got {_short(got)}")

    def items(self, value: object, key: str, lengths: tuple[int, ...] = ()) -> list[Any]:
        """Return a list, of one of these lengths if any are given."""
        if not isinstance(value, list):
            raise self.wrong(key, "a list", value)
        if lengths and len(value) not in lengths:
            counts = " or ".join(str(n) for n in lengths)
            raise self.wrong(key, f"a list of {counts}", value)
        return value

    def table(self, value: object, key: str) -> dict[str, Any]:
        """Return a JSON object."""
        if not isinstance(value, dict):
            raise self.wrong(key, "an object {...}", value)
        return value

    def text(self, value: object, key: str) -> str:
        """Return a text that is not blank."""
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, "a text", value)
        return value

    def flag(self, value: object, key: str) -> bool:
        """Return true or false."""
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def numbers(self, value: object, key: str, count: int) -> tuple[float, ...]:
        """Return this many finite numbers."""
        good = isinstance(value, list) and all(_is_finite_number(v) for v in value)
        if not isinstance(value, list) or not good or len(value) != count:
            raise self.wrong(key, f"a list of {count} finite numbers", value)
        return tuple(float(v) for v in value)

    def point(self, value: object, key: str) -> Point:
        """Return three finite numbers."""
        x, y, z = self.numbers(value, key, 3)
        return x, y, z


def _is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
