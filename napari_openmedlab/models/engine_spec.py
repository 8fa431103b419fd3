"""What the catalogue says about one engine: its task, prompts, options and the weights it runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from napari_openmedlab.errors import EngineError
from napari_openmedlab.models.checkpoint_spec import CheckpointSpec
from napari_openmedlab.models.contract import PromptKind, Task

__all__ = ["EngineSpec", "Option"]


@dataclass(frozen=True)
class Option:
    """One typed setting of an engine; forms and command-line checks are built from it.

    Attributes
    ----------
    name : str
        Key in ``Request.options``.
    default : bool, int, float or str
        Its type is the option's type.
    description : str
        One sentence for the tooltip, units included.
    minimum, maximum : number, optional
        Inclusive limits of a number.
    choices : tuple of str
        The allowed values of a text.
    source : {"", "models", "devices", "view", "contrast"}
        Where a form finds values: the models in the store that fit the engine, the devices of
        this machine, the array axis shown across, the layer's contrast limits.
    """

    name: str
    default: bool | int | float | str
    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    source: Literal["", "models", "devices", "view", "contrast"] = ""

    def check(self, value: Any) -> bool | int | float | str:
        """Return ``value`` in the option's type, or raise :class:`EngineError` saying why not."""
        kind = type(self.default)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise EngineError(f"option '{self.name}' takes a {kind.__name__}, got {value!r}")
        if self.choices and value not in self.choices:
            raise EngineError(
                f"option '{self.name}' is one of {', '.join(self.choices)}, got {value!r}"
            )
        too_low = self.minimum is not None and value < self.minimum  # type: ignore[operator]
        too_high = self.maximum is not None and value > self.maximum  # type: ignore[operator]
        if too_low or too_high:
            raise EngineError(
                f"option '{self.name}' lies between {self.minimum} and {self.maximum}, got {value}"
            )
        return value


@dataclass(frozen=True)
class EngineSpec:
    """One engine as the rest of the program sees it before it is loaded.

    Attributes
    ----------
    id : str
        Stable short name, used in sessions and on the command line.
    title : str
        Name in menus.
    entry : str
        ``"package.module:Class"``; the class takes no arguments.
    task : {"promptable", "automatic", "localizer", "blocks"}
    summary : str
        One sentence: what it is good at.
    prompts : frozenset of str
        Prompt kinds it accepts (promptable engines).
    options : tuple of Option
    checkpoints : tuple of CheckpointSpec
        Empty for an engine that needs no weights.
    requires : tuple of str
        Import names of optional packages it needs, for example ``("torch",)``.
    paper : str
        Where the method is described.
    networks : tuple of str
        Networks (``models.networks.build``) one of whose checkpoints it needs; empty for an
        engine without weights.
    ahead : {"", "point", "slice"}
        Whether it can work ahead of a prompt, and what it then has to know: the point under the
        cursor, or the slice shown.
    """

    id: str
    title: str
    entry: str
    task: Task
    summary: str
    prompts: frozenset[PromptKind] = frozenset()
    options: tuple[Option, ...] = ()
    checkpoints: tuple[CheckpointSpec, ...] = ()
    requires: tuple[str, ...] = ()
    paper: str = ""
    networks: tuple[str, ...] = ()
    ahead: Literal["", "point", "slice"] = ""

    def missing(self) -> tuple[str, ...]:
        """Return sentences on what keeps the engine from running here (empty: ready)."""
        absent = [name for name in self.requires if importlib.util.find_spec(name) is None]
        if not absent:
            return ()
        return (f"{self.title} needs {', '.join(absent)}: pip install 'napari-openmedlab[models]'",)

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return all options with defaults filled in and values checked.

        Raises
        ------
        EngineError
            For an unknown name or a value of the wrong type or out of range.
        """
        known = {option.name: option for option in self.options}
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise EngineError(
                f"{self.title} has no option {', '.join(unknown)}; it has "
                f"{', '.join(known) or 'none'}",
                engine=self.id,
            )
        return {name: o.check(options.get(name, o.default)) for name, o in known.items()}
