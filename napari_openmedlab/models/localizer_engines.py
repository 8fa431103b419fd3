"""Catalogue entries of the engines that find marked structures in other scans."""

from __future__ import annotations

from collections.abc import Sequence

from napari_openmedlab.models.engine_spec import EngineSpec, Option

__all__ = ["localizer_engines"]

_MEDLAM: tuple[Option, ...] = (
    Option(
        "mode",
        "full",
        "full: compared at three scales, as published; quick: without the finest, a quarter of "
        "the work, for a CPU. How much accuracy quick costs is not published.",
        choices=("full", "quick"),
    ),
    Option(
        "seed",
        2023,
        "Chooses the places near the scan's middle from which the search starts; the same seed "
        "gives the same answer.",
        minimum=0,
        maximum=2**31 - 1,
    ),
)

_ATLAS: tuple[Option, ...] = (
    Option(
        "mode",
        "full",
        "full: templates are fitted on voxels of 8 mm, then of 4 mm; quick: of 8 mm only, in "
        "about half the time.",
        choices=("full", "quick"),
    ),
    Option(
        "contrast",
        "auto",
        "ct: values are Hounsfield units; other: stretched between their percentiles; auto: by "
        "the scan.",
        choices=("auto", "ct", "other"),
    ),
)


def localizer_engines(weights: Sequence[Option]) -> tuple[EngineSpec, ...]:
    """Return the entries.

    Parameters
    ----------
    weights : sequence of Option
        What every engine with weights offers: checkpoint, device, precision.
    """
    medlam = EngineSpec(
        id="medlam",
        title="MedLAM (structures marked in templates)",
        entry="napari_openmedlab.models.engines.medlam:MedLam",
        task="localizer",
        summary="Finds in a CT the structures that were marked by six extreme points on a few "
        "template CTs: a box each, with a confidence. Anatomy, not lesions.",
        options=(*weights, *_MEDLAM),
        requires=("torch", "safetensors"),
        paper="Lei et al., MedLSAM, arXiv 2306.14752",
        networks=("medlam",),
    )
    atlas = EngineSpec(
        id="atlas",
        title="Atlas (no training, CPU)",
        entry="napari_openmedlab.models.engines.atlas:Atlas",
        task="localizer",
        summary="Training-free: lays the templates over the scan and carries their marks along. "
        "Works at once, offline, on any contrast that templates and scans share.",
        options=_ATLAS,
    )
    return (medlam, atlas)
