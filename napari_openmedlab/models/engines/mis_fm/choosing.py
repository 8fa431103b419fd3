"""Which model of the store runs, and why one that segments nothing is not run."""

from __future__ import annotations

from napari_openmedlab.errors import CheckpointError, EngineError
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.engines.weights import choose_record
from napari_openmedlab.models.finetuned import ModelCard, start_only

__all__ = ["ID", "choose_trained"]

ID = "mis-fm"
_TRAIN = "Plugins > OpenMedLab > Train, or 'openmedlab finetune'"
_PRETEXT_CLASSES = 5


def choose_trained(store: ModelStore, name: str) -> tuple[Record, ModelCard]:
    """Return the model to run and its card.

    Parameters
    ----------
    store : ModelStore
    name : str
        A model of the store; ``""`` takes the one imported last among those that segment.

    Raises
    ------
    EngineError
        If the model was pre-trained only, says nothing of its classes, or wants several images.
    CheckpointError
        If there is no such model, or none at all.
    """
    record = choose_record(store, ID, name) if name else _newest(store)
    card = record.model_card
    if card is None or card.kind == "pretext":
        raise EngineError(_why_not(record), engine=ID, stage="load")
    channels = card.variant["in_channels"]
    if channels != 1:
        raise EngineError(
            f"model '{record.name}' wants {channels} images of the same patient at once; only "
            "models of one image can be run here",
            engine=ID,
            stage="load",
        )
    return record, card


def _newest(store: ModelStore) -> Record:
    every = [*store.models_of("fmunet"), *store.models_of("pct-net")]
    fitting = [each for each in every if not start_only(each.network, each.card)]
    if fitting:
        return max(fitting, key=lambda record: (record.imported, record.name))
    there = f" ({', '.join(r.name for r in every)}: pre-trained only)" if every else ""
    raise CheckpointError(
        f"there is no model of your own here yet{there}. Train one on your labels first: {_TRAIN}; "
        "or import a colleague's in Plugins > OpenMedLab > Models",
        store.folder,
    )


def _why_not(record: Record) -> str:
    pretext = record.card or record.variant.get("out_channels") == _PRETEXT_CLASSES
    if pretext:
        return (
            f"model '{record.name}' is pre-trained only: it has been taught no structure, so it "
            f"segments nothing. Train on your own labels starting from it: {_TRAIN}"
        )
    return (
        f"model '{record.name}' does not say what its classes are and how scans have to be "
        "prepared for it, so it can't be run. Ask for a file written by napari-openmedlab, or "
        f"train on from it: {_TRAIN}"
    )
