"""``openmedlab train-run``: what the Train panel starts; not for people."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["train_run"]


def train_run(
    folder: Annotated[Path, typer.Argument(help="Of a run that was prepared or stopped.")],
) -> None:
    """Train a prepared run, told what to do by lines on the standard input (Train panel)."""
    from napari_openmedlab.training.child import serve

    ended = serve(folder, sys.stdin)
    if ended.how == "failed":
        raise typer.Exit(1)
