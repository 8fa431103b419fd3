"""Axon-Seg as a block engine: both published networks, our stitching and upstream's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from napari_openmedlab import __version__
from napari_openmedlab.errors import EngineError
from napari_openmedlab.models.blocks import BlockContext, BlockLayout
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.device import choose, precision_for
from napari_openmedlab.models.engines.axon_seg import stitching
from napari_openmedlab.models.engines.weights import Loaded, Weights, choose_record

__all__ = ["ID", "AxonSegEngine"]

ID = "axon-seg"
_PUBLISHED = 128
_BATCH = 4  # windows at a time on a graphics card
_WINDOWS = 2  # windows along each edge of a block
_BYTES_PER_VOXEL = 1100  # of one window in float32, measured: 2.3 GiB for 128 x 128 x 128


class AxonSegEngine:
    """D-LMBmap's networks on blocks of a volume.

    Notes
    -----
    Published as one forward pass on windows of 128 voxels, softmax, class 1. The layout with
    axial attention takes windows of its own size only, which its record states.
    """

    def __init__(self) -> None:
        self._weights = Weights(ID, batch=_BATCH, steady=True)
        self._formatted: Any = None

    def layout(self, options: Mapping[str, Any]) -> BlockLayout:
        """Return how the volume is to be cut up.

        Raises
        ------
        EngineError
            If the halo leaves nothing of a window.
        CheckpointError
            If there is no model.
        """
        window, halo = _window(_record(options)), int(options["halo"])
        core = window - 2 * halo
        if core < 8:
            raise EngineError(
                f"a halo of {halo} leaves {core} of the network's {window} voxels; take less",
                engine=ID,
            )
        memory = _BYTES_PER_VOXEL * window**3
        if options["stitching"] == "upstream":
            return BlockLayout(
                (core,) * 3, (halo,) * 3, bytes=memory, chunk=(core,) * 3, slabs=True
            )
        if options["stitching"] == "gaussian":
            half = window // 2
            return BlockLayout(
                core=(2 * window,) * 3,
                halo=(half,) * 3,
                step=(half,) * 3,
                bytes=memory,
                chunk=(window,) * 3,
                anchored=True,
            )
        return BlockLayout((_WINDOWS * core,) * 3, (halo,) * 3, (core,) * 3, memory, (core,) * 3)

    def score(
        self,
        block: NDArray[Any],
        context: BlockContext,
        options: Mapping[str, Any],
        monitor: Monitor,
    ) -> NDArray[np.float32]:
        """Return the probability of axon for every voxel of a block.

        Raises
        ------
        EngineError
            If memory is short everywhere.
        CheckpointError
            If there is no model, or it is damaged.
        """
        window, halo = _window(_record(options)), int(options["halo"])
        values = context.intensity.apply(block)

        def score(windows: Sequence[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
            return self._scores(windows, options, monitor)

        if options["stitching"] == "upstream":
            return stitching.by_slab(values, window, halo, score)
        if options["stitching"] == "gaussian":
            return stitching.by_gaussian(values, window, score)
        return stitching.by_cores(values, window, halo, score)

    def provenance(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return model, hash of the weights, and kind of device and precision."""
        record = _record(options)
        device = choose(options["device"]).device
        return {
            "engine": ID,
            "version": __version__,
            "network": record.network,
            "model": record.name,
            "weights_sha256": record.sha256,
            "device": device.kind,
            "precision": precision_for(device, options["precision"]),
        }

    def unload(self) -> None:
        """Let go of the network."""
        self._formatted = None
        self._weights.unload()

    def _scores(
        self,
        windows: Sequence[NDArray[np.float32]],
        options: Mapping[str, Any],
        monitor: Monitor,
    ) -> Iterator[NDArray[np.float32]]:
        """Yield the scores of windows, a batch at a time, less where memory runs out."""
        done = 0
        while done < len(windows):
            monitor.step(0, 0, "")

            def attempt(loaded: Loaded, first: int = done) -> list[NDArray[np.float32]]:
                size = 1 if loaded.device.type == "cpu" else loaded.placement.batch
                part = [windows[n] for n in range(first, min(first + size, len(windows)))]
                return self._forward(loaded, part)

            try:
                found = self._weights.run(options, monitor, attempt)
            except EngineError as error:
                raise _advised(error) from error
            yield from found
            done += len(found)

    def _forward(
        self, loaded: Loaded, windows: list[NDArray[np.float32]]
    ) -> list[NDArray[np.float32]]:
        if self._formatted is not loaded.network:
            loaded.network.to(memory_format=loaded.network.memory_format)
            self._formatted = loaded.network
        with loaded.running():
            patches = torch.from_numpy(np.stack(windows)[:, None]).to(loaded.device)
            logits = loaded.network(patches)
            scores = torch.softmax(logits.float(), dim=1)[:, 1]
            return list(scores.cpu().numpy())


def _advised(error: EngineError) -> EngineError:
    """Return the error with advice that fits: the windows are as large as the network wants."""
    if error.stage != "memory":
        return error
    return EngineError(
        "There is not enough memory for one window of the network. Close other programs, or "
        "choose half precision or the CPU (--option precision=half, --option device=cpu) for a "
        "new run: all blocks of a run are computed alike, so one that is begun keeps its device "
        "and precision. Its finished blocks are kept",
        engine=ID,
        stage="memory",
    )


def _record(options: Mapping[str, Any]) -> Record:
    return choose_record(ModelStore(), ID, options["checkpoint"])


def _window(record: Record) -> int:
    return int(record.variant.get("patch_size") or _PUBLISHED)
