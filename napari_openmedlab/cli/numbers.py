"""Three numbers in one option: voxel sizes, places, patches."""

from __future__ import annotations

from math import isfinite
from typing import TypeVar

import typer

__all__ = ["three"]

Number = TypeVar("Number", int, float)


def three(
    text: str, what: str, kind: type[Number], least: float | None = None
) -> tuple[Number, Number, Number]:
    """Return the numbers of ``z,y,x``.

    Parameters
    ----------
    text : str
    what : str
        Names the option in messages.
    kind : int or float
    least : float, optional
        Every number has to be larger.

    Raises
    ------
    typer.BadParameter
        If the text is anything else.
    """
    try:
        z, y, x = (kind(part) for part in text.split(","))
        if all(isfinite(v) and (least is None or v > least) for v in (z, y, x)):
            return z, y, x
    except (ValueError, OverflowError):  # a whole number may be too large for a float
        pass
    more = "" if least is None else f", each more than {least:g}"
    numbers = "whole numbers" if kind is int else "numbers"
    raise typer.BadParameter(f"{what} reads 'z,y,x', three {numbers}{more}; got '{text}'")
