"""What a training run will do: settings made concrete for these cases and this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from napari_openmedlab.errors import CheckpointError, SettingsError
from napari_openmedlab.models.device import AUTO, Device, choose
from napari_openmedlab.models.finetuned import (
    Intensity,
    LabelClass,
    ModelCard,
    Preprocessing,
    card_from_json,
)
from napari_openmedlab.training.cases import CasesFound, Checked
from napari_openmedlab.training.fitting import (
    Fit,
    choose_loop,
    choose_patch,
    choose_variant,
    start_weights,
)
from napari_openmedlab.training.need import fitted
from napari_openmedlab.training.settings import LoopSettings, TrainSettings

__all__ = ["Plan", "make_plan", "plan_from_json"]

_FIRST_HONEST = 3  # cases from which one is held out by default
_PART_HELD_OUT = 5
_CT_FROM = -300.0  # an image that goes below this and says nothing of itself is taken as CT
_SIDES = ("left", "right")
_MM = {"mm": 1.0, "um": 0.001}


@dataclass(frozen=True)
class Plan:
    """A run as it will be, to be shown before it starts.

    Attributes
    ----------
    title : str
    network : str
    variant : dict
        All keywords for ``networks.build``.
    init, init_sha256 : str
        Name and hash in the model store; empty: from scratch.
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
    kept : tuple of str
        Tensors taken over from ``init``; filled in when the run starts.
    memory : int
        Bytes a training step is estimated to need at its peak.
    """

    title: str
    network: str
    variant: dict[str, Any]
    init: str
    init_sha256: str
    preprocessing: Preprocessing
    classes: tuple[LabelClass, ...]
    loop: LoopSettings
    foreground: float
    flips: str
    contrast: float
    train: tuple[str, ...]
    held_out: tuple[str, ...]
    notes: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    memory: int = 0

    def card(self) -> ModelCard:
        """Return the model's card, its provenance still empty."""
        return ModelCard(
            title=self.title,
            network=self.network,
            variant=self.variant,
            preprocessing=self.preprocessing,
            classes=self.classes,
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values, as :func:`plan_from_json` takes them."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found | {"card": self.card().as_json()}


def plan_from_json(found: Mapping[str, Any]) -> Plan:
    """Return a plan from JSON values.

    Raises
    ------
    CheckpointError
        If they are no plan.
    """
    try:
        card = card_from_json(found["card"])
        simple = ("init", "init_sha256", "foreground", "flips", "contrast")
        return Plan(
            title=card.title,
            network=card.network,
            variant=card.variant,
            preprocessing=card.preprocessing,
            classes=card.classes,
            loop=LoopSettings(**found["loop"]),
            train=tuple(found["train"]),
            held_out=tuple(found["held_out"]),
            notes=tuple(found["notes"]),
            kept=tuple(found["kept"]),
            memory=int(found["memory"]),
            **{name: found[name] for name in simple},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"the plan of the run is damaged: {error}") from error


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
    device = choose(settings.device).device
    notes = list(found.notes)
    train, held_out = _split(found, settings, notes)
    spacing = _spacing(found.cases, settings, notes)
    fit = _fit(found, spacing, device, len(train))
    start = start_weights(settings)
    variant = choose_variant(settings, start, fit, notes)
    patch, variant = choose_patch(settings, variant, start is not None, fit)
    loop, memory, short = fitted(
        choose_loop(settings, fit, start is not None), settings.network, variant, patch, device
    )
    notes += [short] if short else []
    preprocessing = Preprocessing(
        patch=patch,
        stride=(max(1, patch[0] // 2), max(1, patch[1] // 2), max(1, patch[2] // 2)),
        spacing=spacing,
        intensity=_intensity(found.cases, settings),
    )
    classes = tuple(LabelClass(name, value) for value, name in found.classes.items())
    return Plan(
        title=settings.name.strip(),
        network=settings.network,
        variant=variant,
        init=start.name if start else "",
        init_sha256=start.sha256 if start else "",
        preprocessing=preprocessing,
        classes=classes,
        loop=loop,
        foreground=settings.foreground,
        flips=_flips(settings, classes, notes),
        contrast=settings.contrast,
        train=train,
        held_out=held_out,
        notes=tuple(notes),
        memory=memory,
    )


def _split(
    found: CasesFound, settings: TrainSettings, notes: list[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the cases to train on and of those held out."""
    names = [checked.case.name for checked in found.cases]
    chosen = _held_out(found, settings, names)
    train = tuple(name for name in names if name not in chosen)
    if not train:
        raise SettingsError(f"all {len(names)} cases are held out; leave some to train on")
    by_name = {checked.case.name: checked for checked in found.cases}
    lost = [
        name
        for value, name in found.classes.items()
        if not any(by_name[case].voxels[value] for case in train)
    ]
    if lost:
        raise SettingsError(
            f"{', '.join(lost)}: only held-out cases have it, so it can't be learnt; hold out "
            "others"
        )
    wanted = settings.held_out
    if isinstance(wanted, int) and len(chosen) < wanted:
        notes.append(
            f"{len(chosen)} instead of {wanted} cases are held out: without the others a class "
            "could not be learnt."
        )
    if not chosen:
        notes.append(
            f"Nothing is held out of {len(names)} case{'s' if len(names) > 1 else ''}: there is no "
            "honest figure for how well the model will do on other scans. Look at its results "
            "yourself, and label three cases or more to measure it."
        )
    return train, tuple(name for name in names if name in chosen)


def _held_out(found: CasesFound, settings: TrainSettings, names: list[str]) -> set[str]:
    wanted, count = settings.held_out, len(names)
    if isinstance(wanted, tuple):
        unknown = sorted(set(wanted) - set(names))
        if unknown:
            raise SettingsError(f"there is no case {', '.join(unknown)} to hold out")
        return set(wanted)
    if wanted is None:
        wanted = max(1, count // _PART_HELD_OUT) if count >= _FIRST_HONEST else 0
    if wanted >= count:
        raise SettingsError(f"{wanted} of {count} cases can't be held out; leave some to train on")
    # Cases without which a class could not be learnt stay; the rest by chance.
    order = np.random.default_rng(abs(settings.seed)).permutation(count)
    chosen: set[str] = set()
    for number in order:
        if len(chosen) == wanted:
            break
        rest = [c for c in found.cases if c.case.name not in chosen | {names[number]}]
        if all(any(c.voxels[value] for c in rest) for value in found.classes):
            chosen.add(names[number])
    return chosen


def _spacing(
    cases: tuple[Checked, ...], settings: TrainSettings, notes: list[str]
) -> tuple[float, float, float] | None:
    known = all(checked.geometry.unit in _MM for checked in cases)
    if not isinstance(settings.spacing, str):
        if not known:
            raise SettingsError("some scans have no known voxel size; they can't be resampled")
        return settings.spacing
    if settings.spacing == "keep" or not known:
        return None
    all_mm = [np.array(c.geometry.spacing) * _MM[c.geometry.unit] for c in cases]
    z, y, x = (round(float(step), 6) for step in np.median(all_mm, axis=0))
    resampled = sum(not np.allclose(one, (z, y, x), rtol=1e-3) for one in all_mm)
    if resampled:
        notes.append(
            f"{resampled} of {len(cases)} scans are resampled to voxels of {z:.3g} x {y:.3g} x "
            f"{x:.3g} mm (z, y, x), the median."
        )
    return z, y, x


def _fit(
    found: CasesFound, spacing: tuple[float, float, float] | None, device: Device, train: int
) -> Fit:
    """Return what network and patch have to suit."""
    shapes, steps = [], []
    for checked in found.cases:
        factor = _MM.get(checked.geometry.unit, 1.0)
        own = np.array(checked.geometry.spacing) * factor
        steps.append(own)
        target = own if spacing is None else np.array(spacing)
        shapes.append(np.maximum(1, np.rint(np.array(checked.geometry.shape) * own / target)))
    z, y, x = (int(edge) for edge in np.median(shapes, axis=0))
    a, b, c = (float(step) for step in (spacing or np.median(steps, axis=0)))
    return Fit((z, y, x), (a, b, c), device, train, len(found.classes) + 1)


def _intensity(cases: tuple[Checked, ...], settings: TrainSettings) -> Intensity:
    low, high = settings.window
    if settings.intensity == AUTO:
        ct = all(
            checked.modality == "CT" or (not checked.modality and checked.lowest < _CT_FROM)
            for checked in cases
        )
    else:
        ct = settings.intensity == "ct"
    return Intensity("clip", low, high) if ct else Intensity("z-score")


def _flips(settings: TrainSettings, classes: tuple[LabelClass, ...], notes: list[str]) -> str:
    if settings.flips != AUTO:
        return "" if settings.flips == "none" else "".join(sorted(set(settings.flips)))
    sided = [c.name for c in classes if any(side in c.name.casefold() for side in _SIDES)]
    if not sided:
        return "yx"
    notes.append(f"Patches are not mirrored from left to right, because of '{sided[0]}'.")
    return "y"
