"""Catalogue entry of the engine that runs the user's own models: MIS-FM's networks, fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence

from napari_openmedlab.models.engine_spec import EngineSpec, Option

__all__ = ["trained_engines"]

_OPTIONS: tuple[Option, ...] = (
    Option(
        "step",
        0.0,
        "Distance between windows as a part of their size, 0.25 at least; 0: as in the model's "
        "card (half). 1 lets them touch only and takes up to an eighth of the time.",
        minimum=0.0,
        maximum=1.0,
    ),
    Option(
        "mirror",
        False,
        "Run each window four times, mirrored along y and x; four times slower, and may confuse "
        "left and right.",
    ),
    Option("largest_piece", False, "Keep only the largest connected piece of each structure."),
)


def trained_engines(weights: Sequence[Option]) -> tuple[EngineSpec, ...]:
    """Return the entries.

    Parameters
    ----------
    weights : sequence of Option
        What every engine with weights offers: checkpoint, device, precision.
    """
    mis_fm = EngineSpec(
        id="mis-fm",
        title="Your own models (MIS-FM)",
        entry="napari_openmedlab.models.engines.mis_fm:MisFm",
        task="automatic",
        summary="Labels what it was taught from your labels in the Train panel, or a colleague's.",
        options=(*weights, *_OPTIONS),
        requires=("torch", "safetensors"),
        paper="Wang et al., IEEE TIP 34:6041-6052, 2025, doi 10.1109/TIP.2025.3610249",
        networks=("fmunet", "pct-net"),
    )
    return (mis_fm,)
