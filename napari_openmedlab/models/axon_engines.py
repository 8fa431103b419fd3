"""Catalogue entries of the engines that find axons in volumes larger than memory."""

from __future__ import annotations

from collections.abc import Sequence

from napari_openmedlab.models.engine_spec import EngineSpec, Option

__all__ = ["axon_engines"]

_FILTER: tuple[Option, ...] = (
    Option("tubes_only", True, "Weaken what is no tube: borders of bright tissue, round blobs."),
    Option(
        "subtract_dark",
        False,
        "Take the camera's dark level off the background before comparing with it.",
    ),
    Option(
        "floor",
        0.0,
        "Least background in grey values: where there is less, noise would look bright beside it. "
        "0: eight times the noise.",
        minimum=0.0,
        maximum=65535.0,
    ),
    Option(
        "block",
        192,
        "Voxels along each edge of a block; smaller ones take less memory and more time.",
        minimum=32,
        maximum=512,
    ),
)

_NETWORK: tuple[Option, ...] = (
    Option(
        "halo",
        20,
        "Voxels at the border of a window that are left to its neighbour; less shows seams.",
        minimum=4,
        maximum=56,
    ),
    Option(
        "stitching",
        "cores",
        "cores: windows side by side; gaussian: overlapping windows, five times slower, no step "
        "between them; upstream: z slabs as published.",
        choices=("cores", "gaussian", "upstream"),
    ),
)


def axon_engines(weights: Sequence[Option]) -> tuple[EngineSpec, ...]:
    """Return the entries.

    Parameters
    ----------
    weights : sequence of Option
        What every engine with weights offers: checkpoint, device, precision.
    """
    built_in = EngineSpec(
        id="axon-filter",
        title="Built-in axon filter (no training, CPU)",
        entry="napari_openmedlab.models.engines.axon_filter:AxonFilter",
        task="blocks",
        summary="Bright thin tubes against their background; works at once, offline.",
        options=_FILTER,
    )
    network = EngineSpec(
        id="axon-seg",
        title="Axon-Seg (network)",
        entry="napari_openmedlab.models.engines.axon_seg:AxonSegEngine",
        task="blocks",
        summary="D-LMBmap's networks for axons in light-sheet brains; wants a GPU.",
        options=(*weights, *_NETWORK),
        requires=("torch", "safetensors"),
        paper="Li et al., Nature Methods 2023, doi 10.1038/s41592-023-01998-6",
        networks=("axon-seg", "axon-seg-plain"),
    )
    return built_in, network
