"""Which published checkpoint a file is meant to be, and whether it is that one."""

from __future__ import annotations

import difflib
from pathlib import Path

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models.catalogue import CheckpointSpec, checkpoints
from napari_openmedlab.models.checkpoints.records import Record

__all__ = ["meaning", "published_as", "require_published"]


def meaning(as_: str | None) -> tuple[CheckpointSpec | None, str | None]:
    """Return the checkpoint, if one is meant, and the network.

    Parameters
    ----------
    as_ : str or None
        Id of a checkpoint, or else name of a network.

    Raises
    ------
    CheckpointError
        If it is neither.
    """
    if as_ is None:
        return None, None
    known = {spec.id: spec for spec in checkpoints()}
    if as_ in known:
        return known[as_], known[as_].network
    from napari_openmedlab.models import networks

    if as_ in networks.names():
        return None, as_
    near = difflib.get_close_matches(as_, [*known, *networks.names()], n=3, cutoff=0.4)
    raise CheckpointError(
        f"there is no checkpoint or network '{as_}'"
        + (f"; did you mean {', '.join(near)}?" if near else "")
    )


def published_as(network: str, file: str) -> CheckpointSpec | None:
    """Return the one published checkpoint of this network and file name, if there is just one."""
    found = [spec for spec in checkpoints(network=network) if spec.file == file]
    return found[0] if len(found) == 1 else None


def require_published(record: Record, spec: CheckpointSpec | None, source: Path) -> None:
    """Raise if a hash is published for a checkpoint and the file has another, or was made here."""
    if spec is not None and record.card:
        raise CheckpointError(
            f"{source.name} is a model that was trained with napari-openmedlab, not the published "
            f"{spec.title}; import it without saying so",
            source,
        )
    if spec is not None and spec.sha256 and spec.sha256 != record.source_sha256:
        raise CheckpointError(
            f"{source.name} is not the published {spec.title}: its sha256 is "
            f"{record.source_sha256}, published is {spec.sha256}; fetch it again",
            source,
        )
