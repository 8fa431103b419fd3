"""Engines at work: loaded once, volumes prepared once, every failure turned into a sentence."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from napari_openmedlab.errors import EngineError, OpenMedLabError
from napari_openmedlab.geometry.volume import Volume
from napari_openmedlab.models.catalogue import load_engine
from napari_openmedlab.models.contract import Anticipating, Hint, Monitor, Prediction, Request

__all__ = ["Workbench", "run_once"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

_MEMORY_HELP = (
    "there was not enough memory for '{engine}' on this image. Close other images, or mark a "
    "smaller structure or a smaller box; your prompts and masks are kept"
)


class Workbench:
    """Loaded engines and prepared volumes of one thread.

    Parameters
    ----------
    limit : int
        Prepared volumes kept; the one used longest ago goes first.

    Notes
    -----
    Not thread-safe: engines are loaded, used and released in the thread that owns the bench,
    since some back ends keep plans per thread.
    """

    def __init__(self, limit: int = 2) -> None:
        self._limit = max(1, limit)
        self._engines: dict[str, Any] = {}
        self._prepared: OrderedDict[tuple[str, int], tuple[Volume, Any]] = OrderedDict()

    def prepare(self, engine_id: str, volume: Volume, monitor: Monitor) -> None:
        """Load the engine and prepare the volume, unless that is done already."""
        with _sentences(engine_id, "prepare", self):
            if engine_id not in self._engines:
                self._engines[engine_id] = load_engine(engine_id)
            key = (engine_id, id(volume))
            if key not in self._prepared:
                while len(self._prepared) >= self._limit:
                    self._prepared.popitem(last=False)
                ready = self._engines[engine_id].prepare(volume, monitor)
                # The volume is kept with what was made of it, so its id stays its own.
                self._prepared[key] = (volume, ready)
            self._prepared.move_to_end(key)

    def predict(
        self, engine_id: str, volume: Volume, request: Request, monitor: Monitor
    ) -> Prediction:
        """Answer a request; prepares first where needed.

        Raises
        ------
        OpenMedLabError
            Whatever went wrong, as a sentence; an unexpected error is the ``__cause__`` of an
            :class:`EngineError`.
        """
        self.prepare(engine_id, volume, monitor)
        with _sentences(engine_id, "predict", self):
            _, ready = self._prepared[engine_id, id(volume)]
            monitor.step()
            answer = self._engines[engine_id].predict(ready, request, monitor)
            monitor.step()
            return _checked(answer, engine_id, volume)

    def anticipate(self, engine_id: str, volume: Volume, hint: Hint, monitor: Monitor) -> None:
        """Let an engine work ahead of a prompt, if it can."""
        self.prepare(engine_id, volume, monitor)
        engine = self._engines[engine_id]
        if isinstance(engine, Anticipating):
            with _sentences(engine_id, "anticipate", self):
                monitor.step()
                engine.anticipate(self._prepared[engine_id, id(volume)][1], hint, monitor)

    def use(self, engine_id: str, stage: str, action: Callable[[Any], T]) -> T:
        """Let an engine of any task do something; it is loaded once, failures become sentences.

        Parameters
        ----------
        engine_id : str
        stage : str
            What it does, for errors: ``"locate"``.
        action : callable
            Gets the engine.
        """
        with _sentences(engine_id, stage, self):
            if engine_id not in self._engines:
                self._engines[engine_id] = load_engine(engine_id)
            return action(self._engines[engine_id])

    def drop_prepared(self) -> None:
        """Forget all prepared volumes."""
        self._prepared.clear()

    def release(self) -> None:
        """Unload all engines and forget all volumes."""
        self._prepared.clear()
        while self._engines:
            engine_id, engine = self._engines.popitem()
            try:
                engine.unload()
            except Exception:
                logger.exception("engine '%s' failed to unload", engine_id)


def _checked(answer: Any, engine_id: str, volume: Volume) -> Prediction:
    if not isinstance(answer, Prediction):
        raise EngineError(
            f"engine '{engine_id}' returned {type(answer).__name__} instead of a prediction",
            engine=engine_id,
            stage="predict",
        )
    if answer.box.clip(volume.geometry.shape) != answer.box:
        raise EngineError(
            f"engine '{engine_id}' answered with {answer.box}, which reaches beyond the image",
            engine=engine_id,
            stage="predict",
        )
    return replace(answer, provenance={**answer.provenance, "engine": engine_id})


@contextmanager
def _sentences(engine_id: str, stage: str, bench: Workbench) -> Iterator[None]:
    """Turn what an engine raises into an error with a sentence; the one broad ``except``."""
    try:
        yield
    except OpenMedLabError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            bench.drop_prepared()
            text = _MEMORY_HELP.format(engine=engine_id)
        else:
            text = f"internal error in engine '{engine_id}': {type(error).__name__}: {error}"
            logger.exception("engine '%s' failed in %s", engine_id, stage)
        raise EngineError(text, engine=engine_id, stage=stage) from error


def _is_out_of_memory(error: BaseException) -> bool:
    """Recognise a full memory, of the GPU too, by name: torch is not imported for it."""
    if isinstance(error, MemoryError):
        return True
    named = type(error).__name__ in ("OutOfMemoryError", "CudaOutOfMemoryError")
    return named or (isinstance(error, RuntimeError) and "out of memory" in str(error).lower())


def run_once(
    engine_id: str,
    volume: Volume,
    request: Request,
    monitor: Monitor | None = None,
    *,
    bench: Workbench | None = None,
) -> Prediction:
    """Answer one request in this thread, by the same code as the viewer's worker.

    Parameters
    ----------
    engine_id : str
    volume : Volume
    request : Request
    monitor : Monitor, optional
        Progress and cancel.
    bench : Workbench, optional
        Keeps engines and prepared volumes between calls; without one all is released at the
        end.

    Raises
    ------
    OpenMedLabError
        As :meth:`Workbench.predict`; :class:`~napari_openmedlab.errors.Cancelled` after a
        cancel.
    """
    own = Workbench() if bench is None else bench
    try:
        return own.predict(engine_id, volume, request, monitor or Monitor())
    finally:
        if bench is None:
            own.release()
