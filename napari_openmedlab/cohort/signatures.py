"""What a finished case stands for, in one hash: any change of it means to do the case again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from napari_openmedlab.cohort.settings import Settings
from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models.localisation import Template

__all__ = ["case_signature", "checkpoint_of", "job_signature", "short_hash"]

_VERSION = 1  # raise when the same settings give other masks


def checkpoint_of(engine: str, options: Mapping[str, Any]) -> str:
    """Return the sha256 of the weights an engine will run; empty for one without weights.

    Raises
    ------
    CheckpointError
        If it needs weights and none fit.
    EngineError
        If there is no such engine.
    """
    from napari_openmedlab.models.catalogue import get_spec
    from napari_openmedlab.models.checkpoints.store import ModelStore

    spec = get_spec(engine)
    if not spec.networks:
        return ""
    store = ModelStore()
    wanted = str(options.get("checkpoint", ""))
    if wanted:
        return store.get(wanted).sha256
    fitting = [record for network in spec.networks for record in store.models_of(network)]
    if not fitting:
        raise CheckpointError(
            f"{spec.title} has no weights here yet. Open Plugins > OpenMedLab > Models, or run "
            "'openmedlab models list', to download or import them",
            store.folder,
        )
    return max(fitting, key=lambda record: (record.imported, record.name)).sha256


def job_signature(settings: Settings, templates: Sequence[Template]) -> str:
    """Return what all cases of a run share: settings, templates and weights, as a hash."""
    marked = [
        [each.id, each.content, [[s.name, s.points] for s in each.structures]]
        for each in sorted(templates, key=lambda t: t.id)
    ]
    weights = [checkpoint_of(settings.localizer, settings.localizer_options)]
    if settings.engine:
        weights.append(checkpoint_of(settings.engine, settings.engine_options))
    return short_hash([_VERSION, settings.as_json(), marked, weights])


def case_signature(job: str, content: str, walls: Mapping[str, Any] | None = None) -> str:
    """Return the signature of one case.

    Parameters
    ----------
    job : str
        Of :func:`job_signature`.
    content : str
        Of :func:`.library_images.content_of`.
    walls : mapping, optional
        Walls set by hand, by structure.
    """
    return short_hash([job, content, dict(walls or {})])


def short_hash(values: Any) -> str:
    """Return a hash of JSON values."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
