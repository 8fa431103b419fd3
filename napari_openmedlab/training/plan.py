"""What a training run will do: settings made concrete for these cases and this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from napari_openmedlab.models.finetuned import LabelClass, Preprocessing
from napari_openmedlab.training.cases import CasesFound
from napari_openmedlab.training.settings import LoopSettings, TrainSettings

__all__ = ["Plan", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """A run as it will be, to be shown before it starts; plain JSON values only.

    Attributes
    ----------
    title : str
    network : str
    variant : dict
        All keywords for ``networks.build``.
    init : str
        Name in the model store; empty: from scratch.
    preprocessing : Preprocessing
        Goes into the model's card.
    classes : tuple of LabelClass
    loop : LoopSettings
    foreground : float
    flips : str
        Letters of "zyx"; may be empty.
    contrast : float
    train, held_out : tuple of str
        Names of the cases.
    notes : tuple of str
        Sentences for the user: what was chosen and why, and that there is no honest validation
        if nothing is held out.
    """

    title: str
    network: str
    variant: dict[str, Any]
    init: str
    preprocessing: Preprocessing
    classes: tuple[LabelClass, ...]
    loop: LoopSettings
    foreground: float
    flips: str
    contrast: float
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    notes: tuple[str, ...] = ()


def make_plan(found: CasesFound, settings: TrainSettings) -> Plan:
    """Return the plan for a run. Takes a moment: asks for the machine's devices.

    Raises
    ------
    SettingsError
        If settings can't be for these cases (a held-out case that is not there, all cases held
        out, a patch that the network can't take).
    CheckpointError, EngineError
        If the weights to start from, or the device, are not there.
    """
    raise NotImplementedError
