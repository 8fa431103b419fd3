"""The plan beside nnU-Net weights: it says by which strides the network pools.

No tensor's shape depends on the strides, so weights load into a network with wrong ones and
give wrong masks without a word. nnU-Net v1 keeps the plan in a pickle (``NAME.model.pkl``,
``plans.pkl``), v2 in ``plans.json`` and ``dataset.json``, and in the checkpoint itself.

The pickle is read by a reader of its own that knows five harmless names and rebuilds NumPy
values as plain lists and numbers; neither NumPy nor anything else is called. Needs no torch.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models.checkpoints.nnunet_facts import facts_v1, facts_v2
from napari_openmedlab.models.checkpoints.pickle_survey import DAMAGED, require_sane_memo

__all__ = ["Plan", "find_plan", "plan_of_checkpoint", "read_plans"]

_STAGES = 5  # STU-Net pools five times, whatever the plan says
_LARGEST = 64 * 2**20
_DEEPEST = 50
_FULL_RESOLUTION = "3d_fullres"
# NumPy number types a plan may hold, as they are pickled ("f8"), except Python objects.
_NUMBERS = frozenset(f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)) | {"b1"}

Strides = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Plan:
    """What STU-Net's network needs to know from a plan.

    Attributes
    ----------
    strides : tuple of five (z, y, x)
        In the order of the encoder's stages.
    in_channels, out_channels : int or None
        As the plan says, background included; ``None`` if it does not.
    source : str
        Name of the file it comes from.
    facts : dict
        What else it says of input and classes; see :mod:`.nnunet_facts`.
    """

    strides: Strides
    in_channels: int | None
    out_channels: int | None
    source: str
    facts: dict[str, Any] = field(default_factory=dict)


def find_plan(weights: Path) -> Plan | None:
    """Return the plan that lies beside a file of weights, where nnU-Net puts it.

    Looked for, in this order: ``NAME.model.pkl``; ``plans.pkl`` and ``plans.json`` in the same
    folder; the same in the folder above, if the weights lie in ``fold_...``.

    Parameters
    ----------
    weights : Path

    Returns
    -------
    Plan or None
        ``None`` if there is no plan, or only one without strides (upstream's stub).

    Raises
    ------
    CheckpointError
        If a plan is there that is damaged or asks to run code.
    """
    folders = [weights.parent]
    if weights.parent.name.startswith("fold_"):
        folders.append(weights.parent.parent)
    places = [weights.with_name(weights.name + ".pkl")]
    places += [folder / name for folder in folders for name in ("plans.pkl", "plans.json")]
    for place in places:
        if not place.is_file():
            continue
        content = read_plans(place)
        try:
            plan = _plan(content, place)
        except DAMAGED as error:
            raise CheckpointError(
                f"{place.name} beside the weights is no plan of nnU-Net; move it away", place
            ) from error
        if plan is not None:
            return plan
    return None


def plan_of_checkpoint(init_args: Mapping[str, Any], source: str) -> Plan | None:
    """Return the plan that an nnU-Net v2 checkpoint carries in its ``init_args``."""
    plans, dataset = init_args.get("plans"), init_args.get("dataset_json")
    if not isinstance(plans, Mapping):
        return None
    name = str(init_args.get("configuration", _FULL_RESOLUTION))
    return _plan_v2(plans, dataset if isinstance(dataset, Mapping) else {}, name, source)


def read_plans(path: str | Path) -> dict[str, Any]:
    """Return the content of ``*.pkl`` (nnU-Net v1) or ``*.json`` (v2) as plain Python values.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    dict
        Dictionaries, lists, strings and numbers; NumPy arrays and numbers as those.

    Raises
    ------
    CheckpointError
        If it can't be read, is damaged, or asks for more than plain values.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST:
            raise CheckpointError(f"{path.name} is too large for a plan", path)
        data = path.read_bytes()
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}", path) from error
    refused: list[str] = []
    try:
        if data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            content = json.loads(data.decode("utf-8-sig"))
        else:
            require_sane_memo(io.BytesIO(data))
            content = _as_plain(_PlanReader(io.BytesIO(data), refused).load(), 0)
    except DAMAGED as error:
        _raise_refused(refused, path)
        raise CheckpointError(
            f"{path.name} is damaged or no plan of nnU-Net; fetch it again", path
        ) from error
    _raise_refused(refused, path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} is no plan of nnU-Net", path)
    return content


def _raise_refused(refused: list[str], path: Path) -> None:
    if refused:
        raise CheckpointError(
            f"{path.name} was refused, and nothing in it was run: a plan holds numbers and names, "
            f"this file asks for {', '.join(map(repr, refused[:5]))}, which could run code. Fetch "
            "it again from its publisher, or move it away to do without",
            path,
        )


class _PlanReader(pickle.Unpickler):
    """Knows the names in nnU-Net's plans and gives each a reader of its own."""

    def __init__(self, file: io.BytesIO, refused: list[str]) -> None:
        super().__init__(file, encoding="utf-8")
        self._refused = refused

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}".replace("numpy.core.", "numpy._core.")
        known = _READERS.get(full)
        if known is None:
            self._refused.append(f"{module}.{name}")
            raise pickle.UnpicklingError(full)
        return known()


# The readers are made anew for each name a plan asks for, so a plan can't change the next one.
def _mapping() -> type:
    class Mapping_(dict[Any, Any]):
        def __setstate__(self, _state: Any) -> None:
            pass

    return Mapping_


def _number_type() -> type:
    class NumberType:
        code = ""

        def __new__(cls, *arguments: Any) -> Any:
            made = object.__new__(cls)
            made.code = str(arguments[0]) if arguments else ""
            return made

        def __init__(self, *_arguments: Any) -> None:
            pass

        def __setstate__(self, state: Any) -> None:
            if state[1] == ">":
                self.code = ">" + self.code

        def values(self, data: Any) -> Any:
            if self.code.removeprefix(">") not in _NUMBERS:
                raise pickle.UnpicklingError(f"NumPy type {self.code!r}")
            raw = data.encode("latin1") if isinstance(data, str) else bytes(data)
            return np.frombuffer(raw, np.dtype(self.code))

    return NumberType


def _scalar() -> type:
    class Scalar:
        def __new__(cls, number_type: Any, data: Any = b"") -> Any:
            return number_type.values(data)[0].item()

    return Scalar


def _array() -> type:
    class Array:
        plain: Any = ()

        def __new__(cls, *_arguments: Any) -> Any:
            return object.__new__(cls)

        def __init__(self, *_arguments: Any) -> None:
            pass

        def __setstate__(self, state: Any) -> None:
            _version, shape, number_type, fortran, data = state
            if isinstance(data, list):  # an array of Python objects, already plain
                values, count = np.empty(len(data), dtype=object), len(data)
                values[:] = [*data]
            else:
                values = number_type.values(data)
                count = len(values)
            if math.prod(shape) != count:
                raise pickle.UnpicklingError("an array of another size")
            self.plain = values.reshape(shape, order="F" if fortran else "C").tolist()

    return Array


def _array_type() -> str:
    return "ndarray"


def _encode() -> Any:
    def encode(text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise pickle.UnpicklingError(encoding)
        return text.encode("latin1")

    return encode


_READERS = {
    "collections.OrderedDict": _mapping,
    "numpy.dtype": _number_type,
    "numpy.ndarray": _array_type,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy._core.multiarray._reconstruct": _array,
    "_codecs.encode": _encode,
}


def _as_plain(value: Any, depth: int) -> Any:
    """Return dictionaries, lists and numbers only; refuse what holds itself."""
    if depth > _DEEPEST:
        raise pickle.UnpicklingError("nested too deeply")
    if isinstance(value, dict):
        return {_as_key(key): _as_plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_as_plain(item, depth + 1) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return value.decode("latin1")
    return _as_plain(value.plain, depth + 1)


def _as_key(key: Any) -> Any:
    return key if isinstance(key, int | str) else str(key)


def _plan(content: Mapping[str, Any], path: Path) -> Plan | None:
    beside = path.with_name("dataset.json")
    dataset = read_plans(beside) if beside.is_file() else {}
    if "configurations" in content:
        return _plan_v2(content, dataset, _FULL_RESOLUTION, path.name)
    plans = content.get("plans", content)
    return _plan_v1(plans, dataset, path.name) if isinstance(plans, Mapping) else None


def _plan_v1(plans: Mapping[str, Any], dataset: Mapping[str, Any], source: str) -> Plan | None:
    stages = plans.get("plans_per_stage")
    if not isinstance(stages, Mapping) or not stages:
        return None
    last = stages[max(stages)]
    strides = _strides(last.get("pool_op_kernel_sizes") if isinstance(last, Mapping) else None)
    if strides is None:
        return None
    classes, modalities = plans.get("num_classes"), plans.get("num_modalities")
    return Plan(
        strides,
        int(modalities) if isinstance(modalities, int) else None,
        int(classes) + 1 if isinstance(classes, int) else None,  # v1 leaves out the background
        source,
        facts_v1(plans, last, dataset),
    )


def _plan_v2(
    plans: Mapping[str, Any], dataset: Mapping[str, Any], name: str, source: str
) -> Plan | None:
    every: dict[str, Any] = {}
    for settings in _configurations(plans, name):
        every = {**settings, **every}
    for settings in _configurations(plans, name):
        architecture = settings.get("architecture")
        nested = architecture.get("arch_kwargs") if isinstance(architecture, Mapping) else None
        found = settings.get("pool_op_kernel_sizes")
        if found is None and isinstance(nested, Mapping):
            found = nested.get("strides")
        strides = _strides(found[1:] if isinstance(found, list) else None)
        if strides is not None:
            named = dataset.get("channel_names", dataset.get("modality"))
            channels = named if isinstance(named, Mapping | list) else None
            count = len(channels) if channels else None
            facts = facts_v2(plans, every, dataset)
            return Plan(strides, count, _classes(dataset), source, facts)
    return None


def _configurations(plans: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    """Yield a configuration and those it inherits from."""
    everything = plans.get("configurations")
    for _ in range(_DEEPEST):
        settings = everything.get(name) if isinstance(everything, Mapping) else None
        if not isinstance(settings, Mapping):
            return
        yield settings
        name = str(settings.get("inherits_from", ""))


def _classes(dataset: Mapping[str, Any]) -> int | None:
    labels = dataset.get("labels")
    if not isinstance(labels, Mapping):
        return None
    numbers = [value for value in labels.values() if isinstance(value, int)]
    whole = len(numbers) == len(labels) and "ignore" not in labels  # no regions, nothing left out
    return max(numbers) + 1 if whole and numbers else None


def _strides(found: Any) -> Strides | None:
    """Return five strides by STU-Net's rule: cut what is more, fill up with ones."""
    if not isinstance(found, list | tuple) or not found:
        return None
    strides = []
    for stride in [*found, *[[1, 1, 1]] * _STAGES][:_STAGES]:
        if not isinstance(stride, list | tuple) or len(stride) != 3:
            return None
        if not all(isinstance(step, int) and 1 <= step <= 8 for step in stride):
            return None
        strides.append((int(stride[0]), int(stride[1]), int(stride[2])))
    return tuple(strides)
