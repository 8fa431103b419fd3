"""Catalogue entries of the engines that work slice by slice: SAM-Med2D, SAM and MedSAM."""

from __future__ import annotations

from collections.abc import Sequence

from napari_openmedlab.models.contract import PromptKind
from napari_openmedlab.models.engine_spec import EngineSpec, Option

__all__ = ["slice_engines"]

_WHERE: tuple[Option, ...] = (
    Option(
        "axis",
        "auto",
        "Array axis across the slices; auto: across the slice that a box or scribble lies in.",
        choices=("auto", "0", "1", "2"),
        source="view",
    ),
    Option(
        "propagate",
        False,
        "Go on from marked slices to their neighbours until the object ends, and fill in between "
        "marked slices. A 3D box and extreme points say themselves where it ends.",
    ),
    Option(
        "reach",
        0,
        "Slices that propagation goes beyond a marked slice at most; 0: no limit.",
        minimum=0,
        maximum=100_000,
    ),
    Option(
        "stop_score",
        0.5,
        "Propagation ends where the network expects less overlap than this with the true outline.",
        minimum=-1.0,
        maximum=1.0,
    ),
    Option(
        "stop_brightness",
        2.5,
        "Propagation ends where the brightness inside the outline moves by more than this many "
        "standard deviations from one slice to the next; 0: it may change freely.",
        minimum=0.0,
        maximum=100.0,
    ),
    Option(
        "boxes",
        "contour",
        "Box on each slice between extreme points: contour follows the object's outline, constant "
        "is the same on all slices, as MedLSAM has it.",
        choices=("contour", "constant"),
    ),
)

_WINDOW: tuple[Option, ...] = (
    Option("window_low", 0.0, "Intensity shown black with contrast: window.", source="contrast"),
    Option("window_high", 255.0, "Intensity shown white with contrast: window.", source="contrast"),
)

_BY_SLICE = Option(
    "contrast",
    "slice",
    "Grey levels by each slice's own smallest and largest value, as in training, or by the "
    "window (the layer's contrast limits), which departs from training.",
    choices=("slice", "window"),
)

_FOLLOW = Option(
    "follow",
    "mask",
    "What propagation gives the network of the neighbouring slice: its mask and the box around "
    "it, or the box alone.",
    choices=("mask", "box"),
)

_DISK = Option(
    "disk",
    0.0,
    "GiB of encoded slices kept on disk for the next time; 0: none.",
    minimum=0.0,
    maximum=10_000.0,
)

_CANDIDATES = (
    "Mask taken of the four the network offers: the best of three by its own score, or the "
    "single one"
)

_ALL: frozenset[PromptKind] = frozenset({"extreme_points", "box", "click", "scribble", "mask"})
_NEEDS = ("torch", "safetensors", "segment_anything")


def slice_engines(weights: Sequence[Option]) -> tuple[EngineSpec, ...]:
    """Return the entries.

    Parameters
    ----------
    weights : sequence of Option
        What every engine with weights has: checkpoint, device, precision.
    """
    return (
        EngineSpec(
            id="sam-med2d",
            title="SAM-Med2D (slices, clicks and boxes)",
            entry="napari_openmedlab.models.engines.sam_slices:SamMed2D",
            task="promptable",
            summary="Clicks, boxes and scribbles on a slice of any view; propagates to 3D. Trained "
            "on ten kinds of medical images at 256 pixels; quick without a graphics card.",
            prompts=_ALL,
            options=(
                *weights,
                *_WHERE,
                _FOLLOW,
                Option("candidates", "best", f"{_CANDIDATES}.", choices=("best", "single")),
                _BY_SLICE,
                *_WINDOW,
                Option(
                    "small_slices",
                    "resize",
                    "Slices below 256 x 256: enlarged as the published predictor does, or padded "
                    "as its evaluation does.",
                    choices=("resize", "pad"),
                ),
                _DISK,
            ),
            requires=_NEEDS,
            paper="Cheng et al., SAM-Med2D, arXiv 2308.16184",
            networks=("sam-med2d", "ft-sam"),
            ahead="slice",
        ),
        EngineSpec(
            id="sam",
            title="SAM (slices, photographs)",
            entry="napari_openmedlab.models.engines.sam_slices:Sam",
            task="promptable",
            summary="Trained on photographs at 1024 pixels: for sharp borders in images of any "
            "kind. About ten seconds a slice without a graphics card.",
            prompts=_ALL,
            options=(
                *weights,
                *_WHERE,
                _FOLLOW,
                Option(
                    "candidates",
                    "auto",
                    f"{_CANDIDATES}; auto: the best of three for one click alone, else the single "
                    "one, as SAM advises.",
                    choices=("auto", "best", "single"),
                ),
                _BY_SLICE,
                *_WINDOW,
                _DISK,
            ),
            requires=_NEEDS,
            paper="Kirillov et al., Segment Anything, arXiv 2304.02643",
            networks=("sam-vit-b", "sam-vit-l", "sam-vit-h"),
            ahead="slice",
        ),
        EngineSpec(
            id="medsam",
            title="MedSAM (slices, boxes)",
            entry="napari_openmedlab.models.engines.sam_slices:MedSam",
            task="promptable",
            summary="A box gives the organ or lesion in it on CT, MR and other medical images; "
            "propagates to 3D. 1024 pixels: about ten seconds a slice without a graphics card.",
            prompts=frozenset({"extreme_points", "box", "scribble", "mask"}),
            options=(
                *weights,
                *_WHERE,
                Option(
                    "contrast",
                    "volume",
                    "Grey levels as in training (CT: level 40, width 400; others: 0.5 to 99.5 % of "
                    "the volume), by the window (the layer's contrast limits; for lung and brain), "
                    "or by each slice's own smallest and largest value.",
                    choices=("volume", "window", "slice"),
                ),
                *_WINDOW,
                Option(
                    "ct",
                    "auto",
                    "Take intensities as Hounsfield units: by the scan, yes or no.",
                    choices=("auto", "yes", "no"),
                ),
                Option(
                    "protocol",
                    "medsam",
                    "How slices are fed: as MedSAM was trained, or as MedLSAM published (for "
                    "comparisons).",
                    choices=("medsam", "medlsam"),
                ),
                _DISK,
            ),
            requires=_NEEDS,
            paper="Ma et al., Segment anything in medical images, Nature Communications 2024",
            networks=("medsam",),
            ahead="slice",
        ),
    )
