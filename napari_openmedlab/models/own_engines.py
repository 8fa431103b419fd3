"""The engines of this package, as data: one entry each. Nothing here imports an engine."""

from __future__ import annotations

from napari_openmedlab.models.axon_engines import axon_engines
from napari_openmedlab.models.contract import PromptKind
from napari_openmedlab.models.engine_spec import EngineSpec, Option
from napari_openmedlab.models.localizer_engines import localizer_engines
from napari_openmedlab.models.organ_engines import organ_engines
from napari_openmedlab.models.slice_engines import slice_engines
from napari_openmedlab.models.trained_engines import trained_engines

__all__ = ["OWN_ENGINES"]

_ALL_PROMPTS: frozenset[PromptKind] = frozenset(
    {"extreme_points", "box", "click", "scribble", "mask"}
)

_WEIGHTS: tuple[Option, ...] = (
    Option(
        "checkpoint",
        "",
        "Model to use, by its name in the Models panel; empty: the one imported last that fits.",
        source="models",
    ),
    Option("device", "auto", "Where the network runs: auto, cpu, cuda:0, mps.", source="devices"),
    Option(
        "precision",
        "auto",
        "auto: half on a GPU, float32 on the CPU.",
        choices=("auto", "float32", "half"),
    ),
)

OWN_ENGINES: tuple[EngineSpec, ...] = (
    EngineSpec(
        id="built-in",
        title="Built-in (no training, CPU)",
        entry="napari_openmedlab.models.engines.built_in:BuiltIn",
        task="promptable",
        summary="Training-free: works at once, offline, on any contrast. Best with extreme points.",
        prompts=_ALL_PROMPTS,
        options=(
            Option(
                "tolerance",
                3.0,
                "Millimetres by which extreme points may be off; 0 takes them as exact. Without a "
                "unit in mm at most one voxel.",
                minimum=0.0,
                maximum=10.0,
            ),
            Option(
                "local_corrections",
                True,
                "A click or scribble changes only its surroundings; the rest of the mask stays.",
            ),
        ),
    ),
    EngineSpec(
        id="sam-med3d",
        title="SAM-Med3D (one click, 3D)",
        entry="napari_openmedlab.models.engines.sam_med3d:SamMed3D",
        task="promptable",
        summary="A click inside gives the 3D mask of an organ or lesion on CT and MR, further "
        "clicks correct it. Sees 192 mm around the click at 1.5 mm.",
        prompts=_ALL_PROMPTS,
        options=(
            *_WEIGHTS,
            Option(
                "points",
                "newest",
                "Clicks the network is given: the newest only, as it was trained, or all.",
                choices=("newest", "all"),
            ),
            Option(
                "ct",
                "auto",
                "Clamp intensities to -1000..1000 HU as in training: by the scan, yes or no.",
                choices=("auto", "yes", "no"),
            ),
            Option(
                "voxel_size",
                0.0,
                "Working voxel in the scan's unit; 0 takes 1.5 mm (coarser for objects larger than "
                "192 mm) and, without mm, what fits the marked extent.",
                minimum=0.0,
                maximum=1000.0,
            ),
            Option(
                "smooth", True, "Interpolate on the way back; off: nearest voxel, as published."
            ),
        ),
        requires=("torch", "safetensors"),
        paper="Wang et al., SAM-Med3D, ECCV 2024 workshops, arXiv 2310.15161",
        networks=("sam-med3d",),
        ahead="point",
    ),
    *slice_engines(_WEIGHTS),
    *organ_engines(_WEIGHTS),
    *trained_engines(_WEIGHTS),
    *localizer_engines(_WEIGHTS),
    *axon_engines(_WEIGHTS),
)
