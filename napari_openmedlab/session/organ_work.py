"""What the Organs panel lets the worker do: name structures, and measure objects."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.models.contract import Labelling, Monitor
from napari_openmedlab.models.organ_table import OrganRow, measure
from napari_openmedlab.session.arrivals import Arrival
from napari_openmedlab.session.runner import Work
from napari_openmedlab.session.session import Session
from napari_openmedlab.session.workbench import Workbench

__all__ = ["measuring", "naming"]


def naming(
    session: Session,
    engine: str,
    region: Box,
    options: Mapping[str, Any],
    chosen: Collection[str],
) -> Work:
    """Return work that labels a region and says what that changes in the session.

    Parameters
    ----------
    session : Session
        Is only read.
    engine : str
        An automatic one of the catalogue.
    region : Box
    options : mapping
        All of the engine's.
    chosen : collection of str
        Structures wanted.

    Returns
    -------
    callable
        Returns an :class:`.arrivals.Arrival`, for :meth:`.Session.take_in`.
    """

    def work(bench: Workbench, monitor: Monitor) -> Arrival:
        def segmented(loaded: Any) -> Labelling:
            found: Labelling = loaded.segment(session.volume, region, options, monitor)
            return found

        found = bench.use(engine, "segment", segmented)
        monitor.step(0, 0, "making objects of the structures")
        return session.foresee(found, chosen)

    return work


def measuring(session: Session, ids: Iterable[int], known: Iterable[OrganRow] = ()) -> Work:
    """Return work that measures objects; it returns their rows.

    Parameters
    ----------
    session : Session
        Is only read.
    ids : iterable of int
        Objects to be measured.
    known : iterable of OrganRow
        Of the others, to compare left with right.

    Notes
    -----
    To be called in the session's thread; the work itself runs in any.
    """
    wanted = set(ids)
    names = {each.id: each.name for each in session.objects if each.id in wanted}
    kept = tuple(row for row in known if row.value not in wanted)
    # A look at a box may tighten it, which only the session's own thread may do.
    box = Box((0, 0, 0), (0, 0, 0))
    for number in names:
        box = box.union(session.mask_of(number).box)

    def work(_bench: Workbench, monitor: Monitor) -> tuple[OrganRow, ...]:
        if box.is_empty:
            return tuple(OrganRow(number, name) for number, name in sorted(names.items()))
        part = session.labels[box.slices]
        return measure(session.volume, part, names, box, around=kept, monitor=monitor)

    return work
