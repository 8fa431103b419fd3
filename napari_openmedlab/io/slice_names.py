"""Which files of a folder make a stack, in which order, and which slices are missing: by names.

One of the numbers in the names counts slices. The others are channels or tiles, whose files are
stacks of their own; or they say something else of the slice (its time, its place in um).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from napari_openmedlab.errors import ReadError

__all__ = ["Stack", "listed", "natural_key", "stacks_of"]

_NAMED = 5  # slices named in a message

_Tokens: TypeAlias = tuple[str | int, ...]  # text, number, text, number, ... text
_SAYS_Z = re.compile(r"(?:(?:^|[^a-z])z|slice|plane)[^a-z0-9]*$")


@dataclass(frozen=True)
class Stack:
    """Files that make one stack.

    Attributes
    ----------
    pattern : str
        The name of its files without what differs among them, for example ``"Z#_C01"``.
    files : tuple of Path
        In the order of the slices.
    counts : tuple of int
        How many slices each file stands for if it takes the place of missing ones behind it.
    missing : tuple of str
        A phrase on each run of missing slices.
    """

    pattern: str
    files: tuple[Path, ...]
    counts: tuple[int, ...]
    missing: tuple[str, ...]

    @property
    def is_sparse(self) -> bool:
        """Whether more slices are missing than there are: the numbers hardly count slices."""
        return sum(self.counts) > 2 * len(self.counts)


@dataclass(frozen=True)
class _Split:
    """Names divided into stacks: the position of the number of slices, and rows by stack."""

    z: int
    stacks: dict[_Tokens, list[int]] = field(repr=False)


def natural_key(name: str) -> list[tuple[int, int | str]]:
    """Return a sort key by which ``slice10`` comes after ``slice9``."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(1, int(p)) if p.isdecimal() else (0, p) for p in parts if p]


def listed(faults: Sequence[str]) -> str:
    """Return phrases in one line, the first few of many."""
    rest = len(faults) - _NAMED
    return "; ".join(faults[:_NAMED]) + (f"; and {rest} more" if rest > 0 else "")


def stacks_of(files: Sequence[Path]) -> list[Stack]:
    """Divide files into stacks by their names.

    Parameters
    ----------
    files : sequence of Path
        In natural order.

    Returns
    -------
    list of Stack
        More than one if names differ in more than the number of the slice.

    Raises
    ------
    ReadError
        If two files of a stack have the same number.
    """
    alike: defaultdict[int, list[Path]] = defaultdict(list)
    for file in files:
        alike[len(_tokens(file))].append(file)
    return [stack for group in alike.values() for stack in _stacks(group)]


def _stacks(files: list[Path]) -> list[Stack]:
    """Divide files whose names have equally many numbers."""
    names = [_tokens(file) for file in files]
    split = _split(names)
    if split is None:
        return [_unnumbered(files, names)]
    stacks = []
    for rows in split.stacks.values():
        rows.sort(key=lambda row: int(names[row][split.z]))
        for one, other in pairwise(rows):
            if names[one][split.z] == names[other][split.z]:
                raise ReadError(
                    f"{files[one]} and {files[other].name} have the same number: one slice can't "
                    "be both; leave only one of them in the folder",
                    files[one],
                )
        chosen = [files[row] for row in rows]
        numbers = [int(names[row][split.z]) for row in rows]
        counts, missing = _gaps(numbers, [file.stem for file in chosen])
        pattern = _pattern(chosen, [names[row] for row in rows])
        stacks.append(Stack(pattern, tuple(chosen), counts, missing))
    return stacks


def _unnumbered(files: list[Path], names: list[_Tokens]) -> Stack:
    return Stack(_pattern(files, names), tuple(files), (1,) * len(files), ())


def _tokens(file: Path) -> _Tokens:
    parts = re.split(r"(\d+)", file.stem)
    return tuple(int(p) if n % 2 else p.casefold() for n, p in enumerate(parts))


def _split(names: list[_Tokens]) -> _Split | None:
    """Find the number that counts slices; ``None`` if no number differs."""
    kinds = [len({name[n] for name in names}) for n in range(len(names[0]))]
    numbers = [n for n in range(1, len(kinds), 2) if kinds[n] > 1]
    single = [n for n in numbers if kinds[n] == len(names)]
    shared = [n for n in numbers if n not in single]
    if shared:
        split = _by(_likeliest(shared, names), names, kinds)
        if not single or _is_certain(split, names, kinds):
            return split
    return _Split(_likeliest(single, names), {(): list(range(len(names)))}) if single else None


def _likeliest(numbers: list[int], names: list[_Tokens]) -> int:
    """Return the number that most likely counts slices: called z, most values, evenly, last."""

    def likely(n: int) -> tuple[bool, int, int, int]:
        values = sorted({int(name[n]) for name in names})
        steps = Counter(b - a for a, b in pairwise(values))
        return _says_z(n, names), len(values), max(steps.values(), default=0), n

    return max(numbers, key=likely)


def _by(z: int, names: list[_Tokens], kinds: list[int]) -> _Split:
    """Divide names by what it takes beside z to tell them apart; times and places are left out."""
    needed = [n for n, kind in enumerate(kinds) if n != z and 1 < kind < len(names)]
    for n in sorted(needed, key=lambda n: -kinds[n]):
        fewer = [m for m in needed if m != n]
        if _told_apart(names, [z, *fewer]) == _told_apart(names, [z, *needed]):
            needed = fewer
    stacks: defaultdict[_Tokens, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        stacks[tuple(name[n] for n in needed)].append(row)
    return _Split(z, dict(stacks))


def _told_apart(names: list[_Tokens], by: list[int]) -> int:
    return len({tuple(name[n] for n in by) for name in names})


def _is_certain(split: _Split, names: list[_Tokens], kinds: list[int]) -> bool:
    """Return whether a split is more than chance, though another number counts all files.

    That number may run on through all channels, or be the slice's beside its time, say.
    """
    z, stacks = split.z, split.stacks.values()
    if len(stacks) < 2 or any(len({names[row][z] for row in rows}) < len(rows) for rows in stacks):
        return False
    return _says_z(z, names) or all(len(rows) == kinds[z] for rows in stacks)


def _says_z(n: int, names: list[_Tokens]) -> bool:
    """Return whether the text before a number calls it z."""
    return bool(_SAYS_Z.search(str(names[0][n - 1])))


def _pattern(files: list[Path], names: list[_Tokens]) -> str:
    parts = re.split(r"(\d+)", files[0].stem)
    same = [len({name[n] for name in names}) == 1 for n in range(len(parts))]
    return "".join(part if fixed else "#" for part, fixed in zip(parts, same, strict=True))


def _gaps(numbers: list[int], stems: list[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return how many slices each file stands for, and phrases on numbers left out."""
    counts = [1] * len(numbers)
    steps = [b - a for a, b in pairwise(numbers)]
    if len(steps) < 2:
        return tuple(counts), ()
    often = Counter(steps)
    usual = max(often, key=lambda step: (often[step], -step))
    missing = []
    for i, step in enumerate(steps):
        if step < 2 * usual:
            continue
        counts[i] = round(step / usual)
        low, high = numbers[i] + usual, numbers[i] + usual * (counts[i] - 1)
        which = f"slice {low}" if low == high else f"slices {low} to {high}"
        missing.append(f"{which} missing between {stems[i]} and {stems[i + 1]}")
    return tuple(counts), tuple(missing)
