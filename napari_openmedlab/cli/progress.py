"""Progress bars on stderr, silent where nobody watches; Ctrl-C ends in a clean stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from napari_openmedlab.errors import Cancelled
from napari_openmedlab.models.contract import Monitor, Progress

__all__ = ["working"]


@contextmanager
def working(title: str, kept: str = "") -> Iterator[Monitor]:
    """Show a bar while the block runs and give it a monitor that feeds the bar.

    The bar appears only if stderr is a terminal.

    Parameters
    ----------
    title : str
        What is being done: "reading scan.nii".
    kept : str
        What is left after Ctrl-C, and how to go on.

    Raises
    ------
    Cancelled
        If Ctrl-C was pressed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
    )
    bars = Bars(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bars.add_task(title, total=None)

    def show(progress: Progress) -> None:
        text = f"{title}: {progress.text}" if progress.text else title
        total = progress.total or None
        bars.update(task, description=text, total=total, completed=progress.done)

    monitor = Monitor(show)
    try:
        with bars:
            yield monitor
    except KeyboardInterrupt:
        monitor.cancel()
        raise Cancelled(f"stopped while {title}" + (f"; {kept}" if kept else "")) from None
