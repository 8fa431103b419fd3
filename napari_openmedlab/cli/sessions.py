"""``openmedlab replay``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from napari_openmedlab.errors import SessionError

__all__ = ["replay"]


def replay(
    session: Annotated[Path, typer.Argument(help="Session file (.omlsession).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Mask to write.")],
    image: Annotated[
        Path | None, typer.Option(help="The scan, if it was moved since the session was saved.")
    ] = None,
    series: Annotated[str | None, typer.Option(help="Which image, if there are several.")] = None,
    index: Annotated[int | None, typer.Option(min=0, help="Which volume of a 4D file.")] = None,
) -> None:
    """Compute a saved session again, step by step, and write its masks.

    Exit code 1 if a step gives another mask than the saved one.
    """
    from rich.console import Console

    from napari_openmedlab.cli.progress import working
    from napari_openmedlab.cli.segment import check_target, summary
    from napari_openmedlab.io.api import read
    from napari_openmedlab.session.export import export
    from napari_openmedlab.session.replay import replay_steps

    check_target(out)
    volume = None if image is None else read(image, series=series, index=index)
    with working(f"replaying {session.name}") as monitor:
        found = replay_steps(session, volume, monitor)
    written = export(found.session, out)
    console = Console()
    console.print(summary(found.session))
    for path in written:
        console.print(f"Written: {path}", markup=False, highlight=False, soft_wrap=True)
    if found.differences:
        raise SessionError(
            "these steps gave another mask than the saved one, perhaps made by another version "
            f"of the engine: {'; '.join(found.differences)}"
        )
    console.print(
        f"{found.computed} step(s) computed again, {found.taken} by hand taken over: identical to "
        "the saved masks"
    )
