"""Catalogue entry of the engine that names all organs at once: STU-Net."""

from __future__ import annotations

from collections.abc import Sequence

from napari_openmedlab.models.engine_spec import EngineSpec, Option

__all__ = ["organ_engines"]

_OPTIONS: tuple[Option, ...] = (
    Option(
        "classes",
        "",
        "Structures, groups (abdomen, spine, ribs ...) or patterns (vertebrae_L*) with commas "
        "between; empty: all.",
    ),
    Option(
        "spacing",
        0.0,
        "Voxels of the network's grid in mm; 0: as trained (1.5). 3 takes an eighth of the time, "
        "for a preview.",
        minimum=0.0,
        maximum=10.0,
    ),
    Option(
        "step",
        0.5,
        "Distance between windows as a part of their size; 0.8 is two to three times faster, "
        "1 lets them touch only.",
        minimum=0.25,
        maximum=1.0,
    ),
    Option(
        "mirror",
        False,
        "Run each window eight times, mirrored; eight times slower, and may confuse left and "
        "right.",
    ),
    Option(
        "export",
        "exact",
        "Way back to the scan's grid: exact interpolates probabilities, smooth interpolates "
        "labels, nearest takes the nearest label.",
        choices=("exact", "smooth", "nearest"),
    ),
    Option("skip_air", True, "Leave out windows that hold nothing but air (CT)."),
    Option(
        "orientation",
        "RAS",
        "Order in which the training scans were stored: RAS for the published weights.",
        choices=("RAS", "LAS", "LPS", "RPS"),
    ),
    Option(
        "names",
        "",
        "Class names of a model of your own: a JSON file (nnU-Net's dataset.json will do), or "
        "the JSON itself.",
    ),
)


def organ_engines(weights: Sequence[Option]) -> tuple[EngineSpec, ...]:
    """Return the entries.

    Parameters
    ----------
    weights : sequence of Option
        What every engine with weights offers: checkpoint, device, precision.
    """
    stu_net = EngineSpec(
        id="stu-net",
        title="STU-Net (104 structures)",
        entry="napari_openmedlab.models.engines.stu_net:StuNet",
        task="automatic",
        summary="Names 104 structures of a CT at once: organs, bones, muscles, vessels.",
        options=(*weights, *_OPTIONS),
        requires=("torch", "safetensors"),
        paper="Huang et al., STU-Net, arXiv 2304.06716",
        networks=("stu-net-s", "stu-net-b", "stu-net-l", "stu-net-h"),
    )
    return (stu_net,)
