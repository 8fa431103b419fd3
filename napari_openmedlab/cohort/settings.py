"""What a cohort is asked for: who finds, who segments, and how the boxes are handed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal

from napari_openmedlab.cohort.sub_patches import base_of
from napari_openmedlab.errors import SettingsError
from napari_openmedlab.models.localisation import Template

__all__ = ["LOCALIZERS", "Prompting", "Settings", "default_localizer", "structures_of"]

Prompting = Literal["box", "extreme_points"]

LOCALIZERS = ("medlam",)
"""Localizers that are taken before others where their weights are there."""

_PROMPTINGS = ("box", "extreme_points")


@dataclass(frozen=True)
class Settings:
    """One way to work on a cohort. Plain values: it is saved with the results.

    Attributes
    ----------
    localizer : str
        Id of an engine that finds structures.
    localizer_options : mapping
        Values that differ from its defaults.
    engine : str
        Id of an engine that takes prompts; empty: boxes only, no masks.
    engine_options : mapping
    structures : tuple of str
        Empty: all that the templates have.
    margin_mm : float
        Added on each side of a found box before it is handed over; the mask is cut there. With
        the built-in engine 0 did best (see docs/cohort.md).
    prompts : {"box", "extreme_points"}
        What the engine is given: the box (whole-patch, or sub-patches where the localizer gives
        them), or the six points the localizer found.
    slab_interval : int
        Sub-patches along z of so many 3 mm slices, as MedLSAM has them (2 as published), for
        structures marked from masks; 0: the whole box.
    one_file_per_structure : bool
        Masks of 0 and 1 instead of one label map.

    Raises
    ------
    SettingsError
        If a value makes no sense.
    """

    localizer: str
    localizer_options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    engine: str = "built-in"
    engine_options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    structures: tuple[str, ...] = ()
    margin_mm: float = 0.0
    prompts: Prompting = "box"
    slab_interval: int = 0
    one_file_per_structure: bool = False

    def __post_init__(self) -> None:
        for name in ("localizer_options", "engine_options"):
            object.__setattr__(self, name, dict(getattr(self, name)))
        object.__setattr__(self, "structures", tuple(self.structures))
        if not 0.0 <= self.margin_mm <= 200.0:
            raise SettingsError(f"the margin lies between 0 and 200 mm, got {self.margin_mm}")
        if not 0 <= self.slab_interval <= 100:
            raise SettingsError(f"sub-patches have 0 to 100 slices, got {self.slab_interval}")
        if self.prompts not in _PROMPTINGS:
            raise SettingsError(f"prompts are one of {', '.join(_PROMPTINGS)}, got {self.prompts}")

    def as_json(self) -> dict[str, Any]:
        """Return all values as JSON has them."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**values, "structures": list(self.structures)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Settings:
        """Return the settings that :meth:`as_json` gave; unknown names are passed over."""
        known = {item.name for item in fields(cls)}
        given = {name: value for name, value in values.items() if name in known}
        try:
            return cls(**{**given, "structures": tuple(given.get("structures", ()))})
        except (TypeError, ValueError) as error:
            raise SettingsError(f"the settings of the cohort can't be read: {error}") from error

    def check(self) -> None:
        """Raise :class:`EngineError` or :class:`SettingsError` if the engines don't fit."""
        from napari_openmedlab.errors import EngineError
        from napari_openmedlab.models.catalogue import get_spec

        wanted = [(self.localizer, "localizer", self.localizer_options)]
        if self.engine:
            wanted.append((self.engine, "promptable", self.engine_options))
        for name, task, options in wanted:
            spec = get_spec(name)
            if spec.task != task:
                raise EngineError(f"engine '{name}' is {spec.task}, not {task}", engine=name)
            spec.check_options(options)
            if lacks := spec.missing():
                raise EngineError(lacks[0], engine=name, stage="load")
            if task == "promptable" and not {"box", "extreme_points"} & spec.prompts:
                raise SettingsError(f"{spec.title} takes neither boxes nor extreme points")


def default_localizer() -> str:
    """Return the localizer to take: MedLAM where its weights are, else one that needs none.

    Raises
    ------
    EngineError
        If the catalogue has no localizer that could run here.
    """
    from napari_openmedlab.errors import EngineError
    from napari_openmedlab.models.catalogue import engines
    from napari_openmedlab.models.checkpoints.store import ModelStore

    specs = [spec for spec in engines("localizer") if not spec.missing()]
    specs.sort(key=lambda spec: spec.id not in LOCALIZERS)
    store = ModelStore()
    for spec in specs:
        if not spec.networks or any(store.models_of(network) for network in spec.networks):
            return spec.id
    raise EngineError("no engine that finds structures can run here; see 'openmedlab engines'")


def structures_of(templates: Sequence[Template], wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the structures to look for, in a stable order: as asked, or all by name.

    Raises
    ------
    SettingsError
        If there is no template, or none has one of the structures asked for.
    """
    names = {s.name for each in templates for s in each.structures}
    known = sorted((n for n in names if not base_of(n, list(names))), key=str.casefold)
    if not known:
        raise SettingsError(
            "the template library has no marked structure; mark one on a scan in the Cohort panel, "
            "or from a mask"
        )
    absent = [name for name in wanted if name not in known]
    if absent:
        raise SettingsError(
            f"no template has {', '.join(absent)}; the library has {', '.join(known)}"
        )
    return tuple(dict.fromkeys(wanted)) if wanted else tuple(known)
