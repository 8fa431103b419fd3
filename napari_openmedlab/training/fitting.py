"""Network, patch and schedule that suit the cases and the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from napari_openmedlab.errors import CheckpointError, SettingsError
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.device import Device
from napari_openmedlab.training.settings import LoopSettings, TrainSettings

__all__ = ["Fit", "choose_loop", "choose_patch", "choose_variant", "start_weights"]

Index3 = tuple[int, int, int]

_CHANNELS = {
    ("fmunet", "published"): (32, 64, 128, 256, 512),
    ("fmunet", "small"): (16, 32, 64, 128, 128),
    ("pct-net", "published"): (24, 48, 128, 256, 512),
    ("pct-net", "small"): (12, 24, 48, 96, 128),
}
_PUBLISHED_PATCH = (64, 128, 128)
_SMALLER_PATCH = (48, 96, 96)
_CPU_PATCH = (32, 64, 64)
_TIGHT = 5 * 2**30  # free bytes of a card below which patches are smaller
_FLAT_FROM = (1.8, 4.0)  # slices so many times thicker than pixels: one, two levels work flat
_WINDOW = 6  # of PCT-Net's attention
_FEW = 10  # cases below which weights taken over learn slower


@dataclass(frozen=True)
class Fit:
    """What a network has to suit.

    Attributes
    ----------
    shape : tuple of int
        Of a typical scan on the network's grid (z, y, x).
    spacing : tuple of float
        Of that grid, mm where known.
    device : Device
    cases : int
        To train on.
    outputs : int
        Classes with the background.
    """

    shape: Index3
    spacing: tuple[float, float, float]
    device: Device
    cases: int
    outputs: int


def start_weights(settings: TrainSettings) -> Record | None:
    """Return the record of the weights to start from; ``None`` for a start from scratch.

    Raises
    ------
    CheckpointError
        If there is no such model, it is damaged, or of another network or with other channels.
    """
    if not settings.init:
        return None
    from napari_openmedlab.models.checkpoints.store import ModelStore

    record = ModelStore().get(settings.init)
    if record.network != settings.network:
        raise CheckpointError(
            f"'{record.name}' holds weights of {record.network}, not of {settings.network}; choose "
            "that network, or other weights"
        )
    channels = record.variant.get("in_channels", 1)
    if channels != 1:
        raise CheckpointError(
            f"'{record.name}' is for images of {channels} channels; scans have one"
        )
    return record


def choose_variant(
    settings: TrainSettings, start: Record | None, fit: Fit, notes: list[str]
) -> dict[str, Any]:
    """Return the network's keywords; those of the weights to start from, where there are any."""
    flat = _flatness(fit.spacing)
    if start is not None:
        found = dict(start.variant) | {"in_channels": 1, "out_channels": fit.outputs}
        trained = int(found.get("resolution_mode", 1 if settings.network == "pct-net" else 0))
        mode = trained if settings.resolution_mode is None else settings.resolution_mode
        if mode != trained and settings.network == "fmunet":
            notes.append(
                f"In resolution mode {mode} the first levels of the network start fresh; "
                f"'{start.name}' is of mode {trained}."
            )
        return found | {"resolution_mode": mode}
    size = settings.size
    if size == "auto":
        size = "published" if fit.device.kind == "cuda" else "small"
        if size == "small":
            notes.append(
                f"A small network is trained, because {fit.device.id} is slow or has little memory."
            )
    mode = flat if settings.resolution_mode is None else settings.resolution_mode
    channels = _CHANNELS[settings.network, size] if isinstance(size, str) else size
    return {
        "in_channels": 1,
        "out_channels": fit.outputs,
        "resolution_mode": mode,
        "channels": list(channels),
    }


def choose_patch(
    settings: TrainSettings, variant: dict[str, Any], started: bool, fit: Fit
) -> tuple[Index3, dict[str, Any]]:
    """Return the patch, and the variant with what depends on it (PCT-Net's windows).

    Raises
    ------
    SettingsError
        If the patch asked for does not suit the network.
    """
    mode = int(variant["resolution_mode"])
    unit = (2 ** (4 - mode), 16, 16)
    least = (unit[0], 32, 32)  # more than one voxel at the bottom
    windowed = settings.network == "pct-net"
    edge = int(variant.get("windows", [_WINDOW])[-1])
    if windowed and started:
        least = (unit[0] * edge, 16 * edge, 16 * edge)
    patch = settings.patch
    if patch is not None:
        if any(p % u or p < n for p, u, n in zip(patch, unit, least, strict=True)):
            raise SettingsError(
                f"a patch of {_times(patch)} does not suit {settings.network}: its edges are "
                f"multiples of {_times(unit)} from {_times(least)} on"
            )
    elif windowed and started and edge < _WINDOW:
        patch = least  # a larger one would ask for larger windows than these weights have
    else:
        patch = _own_patch(fit, unit, least)
    if windowed and not started:
        grid = min(patch[0] // unit[0], patch[1] // 16, patch[2] // 16)
        variant = variant | {"windows": [min(_WINDOW, grid * 2**k) for k in (2, 1, 0)]}
    return patch, variant


def choose_loop(settings: TrainSettings, fit: Fit, started: bool) -> LoopSettings:
    """Return the schedule, by the number of cases."""
    iterations = settings.iterations or _iterations(fit.cases)
    batch = settings.batch or 2
    fresh = settings.learning_rate or 1e-3
    slower = 0.3 if started and fit.cases < _FEW else 1.0
    every = settings.validate_every or max(1, min(250, iterations // 24))
    return LoopSettings(
        iterations=iterations,
        batch=batch,
        accumulation=min(settings.accumulation or 1, batch),
        learning_rate=fresh,
        trunk_rate=settings.trunk_rate or fresh * slower,
        validate_every=every,
        save_every=min(250, every) if settings.validate_every else 250,
        patience=iterations // 2,
        seed=settings.seed,
        device=settings.device,
        precision=settings.precision,
    )


def _iterations(cases: int) -> int:
    if cases == 1:
        return 1000
    if cases <= 3:
        return 2000
    return 3000 if cases < 20 else 6000


def _own_patch(fit: Fit, unit: Index3, least: Index3) -> Index3:
    """Return a patch no larger than a typical scan needs and the device bears."""
    wanted = _CPU_PATCH
    if fit.device.kind != "cpu":
        wanted = _PUBLISHED_PATCH if fit.device.free >= _TIGHT else _SMALLER_PATCH
    edges = []
    for want, size, step, low in zip(wanted, fit.shape, unit, least, strict=True):
        needed = -(-size // step) * step
        edges.append(max(low, min(-(-want // step) * step, needed)))
    return edges[0], edges[1], edges[2]


def _flatness(spacing: tuple[float, float, float]) -> int:
    """Return the resolution mode that suits the voxels."""
    ratio = spacing[0] / max(1e-9, (spacing[1] + spacing[2]) / 2)
    return sum(ratio >= limit for limit in _FLAT_FROM)


def _times(edges: Index3) -> str:
    return " x ".join(map(str, edges))
