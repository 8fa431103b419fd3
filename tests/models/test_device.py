"""Devices, precision and the way down when memory runs out; errors and cards are injected."""

from __future__ import annotations

import errno
import gc
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from napari_openmedlab.errors import Cancelled, EngineError
from napari_openmedlab.models import device as device_module
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.device import (
    Device,
    Placement,
    autocast,
    choose,
    devices,
    gib,
    is_out_of_memory,
    precision_for,
)
from napari_openmedlab.models.fallback import fallbacks, run_with_fallback

GIB = 2**30
CPU = Device("cpu", "CPU", 8 * GIB, 16 * GIB, ("bfloat16",))
CARD = Device("cuda:0", "New", 8 * GIB, 16 * GIB, ("bfloat16", "float16"), True)
OLD_CARD = Device("cuda:1", "Old", 8 * GIB, 16 * GIB, ("float16",), False)


@pytest.fixture
def cards(monkeypatch):
    """Pretend that CUDA cards are there: (name, free GiB, compute capability) each."""

    def pretend(*facts: tuple[str, float, tuple[int, int]], fail: dict[str, str] | None = None):
        def try_out(card: str) -> None:
            if card in (fail or {}):
                raise RuntimeError((fail or {})[card])

        def properties(index: int) -> SimpleNamespace:
            name, _, (major, minor) = facts[index]
            return SimpleNamespace(name=name, total_memory=80 * GIB, major=major, minor=minor)

        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: len(facts),
            "get_device_properties": properties,
            "mem_get_info": lambda index: (int(facts[index][1] * GIB), 80 * GIB),
            "memory_reserved": lambda index: 0,
            "memory_allocated": lambda index: 0,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(device_module, "_try_out", try_out)

    return pretend


@pytest.fixture
def no_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_importing_the_module_imports_no_torch():
    code = (
        "import sys, napari_openmedlab.models.device, napari_openmedlab.models.fallback, "
        "napari_openmedlab.models.memory; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_without_a_card_the_cpu_is_chosen_and_the_reason_told(no_card):
    choice = choose()
    assert choice.device.id == "cpu"
    assert "graphics card" in choice.why
    assert choice.device.total >= choice.device.free > 0
    assert f"{torch.get_num_threads()} thread" in choice.device.name


def test_the_number_of_threads_stays(no_card):
    before = torch.get_num_threads()
    choose()
    with autocast(Placement()):
        pass
    assert torch.get_num_threads() == before


def test_of_two_cards_the_one_with_more_free_memory_is_chosen(cards):
    cards(("Small", 3, (8, 6)), ("Large", 70, (9, 0)))
    for wanted in ("auto", "cuda", " CUDA "):
        choice = choose(wanted)
        assert choice.device.id == "cuda:1"
        assert "Large" in choice.why
        assert "70.0 GiB" in choice.why
        assert "most free memory" in choice.why
    assert choose("cuda:0").device.name == "Small"
    assert choose("cpu").device.id == "cpu"
    assert [d.id for d in devices()] == ["cuda:0", "cuda:1", "cpu"]


def test_what_torch_keeps_in_reserve_counts_as_free(cards, monkeypatch):
    cards(("Card", 3, (8, 6)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: 5 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda index: 1 * GIB)
    assert devices()[0].free == 7 * GIB


def test_a_wrong_choice_lists_what_there_is(cards):
    cards(("Card", 3, (8, 6)))
    with pytest.raises(EngineError, match=r"no device 'cuda:7'.*auto.*cuda:0 \(Card.*cpu"):
        choose("cuda:7")


def test_a_card_wished_for_where_there_is_none_says_why(no_card):
    with pytest.raises(EngineError, match=r"no device 'cuda' here \(.*graphics card.*cpu"):
        choose("cuda")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("CUDA error: no kernel image is available for execution", "built without code for it"),
        ("CUDA out of memory. Tried to allocate 2 MiB", "memory is full"),
        ("CUDA error: unspecified launch failure", "unspecified launch failure"),
    ],
)
def test_a_card_that_fails_its_trial_is_passed_over(cards, error, words):
    cards(("Broken", 70, (3, 5)), fail={"cuda:0": error})
    choice = choose()
    assert choice.device.id == "cpu"
    assert words in choice.why
    assert words in devices()[0].label
    with pytest.raises(EngineError, match=f"can't be used: .*{words}"):
        choose("cuda:0")


def test_apples_gpu_is_chosen_before_the_cpu(no_card, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: False)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * GIB)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 1 * GIB)
    monkeypatch.setattr(device_module, "_try_out", lambda card: None)
    choice = choose()
    assert choice.device.id == "mps"
    assert choice.device.halves == ("float16",)
    assert choice.device.free <= 11 * GIB


def test_the_card_s_age_decides_its_half_precision(cards):
    cards(("Ampere", 8, (8, 0)), ("Turing", 8, (7, 5)), ("Pascal", 8, (6, 1)))
    ampere, turing, pascal, cpu = devices()
    assert [precision_for(d) for d in (ampere, turing, pascal, cpu)] == [
        "bfloat16",
        "float16",
        "float32",
        "float32",
    ]
    assert [precision_for(d, "half") for d in (ampere, turing, pascal, cpu)] == [
        "bfloat16",
        "float16",
        "float16",
        "bfloat16",
    ]


def test_the_user_s_precision_wins_where_the_device_has_it():
    assert precision_for(CARD, "float32") == "float32"
    assert precision_for(CARD, "float16") == "float16"
    assert precision_for(CPU, "bfloat16") == "bfloat16"
    assert precision_for(CARD, half="float16") == "float16"
    assert precision_for(OLD_CARD, "half", half="bfloat16") == "float16"
    with pytest.raises(EngineError, match=r"'bfloat16'; choose auto, float32, float16"):
        precision_for(OLD_CARD, "bfloat16")
    with pytest.raises(EngineError, match=r"cpu.*'float16'"):
        precision_for(CPU, "float16")
    with pytest.raises(EngineError, match="'double'"):
        precision_for(CARD, "double")


def test_autocast_sets_the_precision_and_float32_switches_it_off():
    layer = torch.nn.Linear(4, 4)
    with torch.inference_mode(), autocast(Placement("cpu", "bfloat16")):
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
        with autocast(Placement("cpu", "float32")):
            assert layer(torch.ones(1, 4)).dtype == torch.float32


def test_sizes_are_readable():
    assert gib(7.5 * GIB) == "7.5 GiB"
    assert gib(312 * 2**20) == "312 MiB"


# ---------------------------------------------------------------- out of memory


def test_the_way_down():
    assert fallbacks(Placement("cuda:0", "float32", 8), "bfloat16") == (
        Placement("cuda:0", "float32", 8),
        Placement("cuda:0", "float32", 4),
        Placement("cuda:0", "float32", 2),
        Placement("cuda:0", "float32", 1),
        Placement("cuda:0", "bfloat16", 1),
        Placement("cpu", "float32", 1),
    )
    assert fallbacks(Placement("mps", "float16", 3), "float16") == (
        Placement("mps", "float16", 3),
        Placement("mps", "float16", 1),
        Placement("cpu", "float32", 1),
    )
    assert fallbacks(Placement("cpu", "float32", 2), "bfloat16") == (
        Placement("cpu", "float32", 2),
        Placement("cpu", "float32", 1),
    )


def numpys_own_error() -> BaseException:
    try:
        np.ones(2**55, dtype=np.uint8)
    except MemoryError as error:
        return error
    raise AssertionError("this computer has 32 PiB of memory")


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronous"),
    RuntimeError("HIP out of memory. Tried to allocate 2 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9 GB, max allowed: 18 GB)"),
    RuntimeError("Invalid buffer size: 24.00 GB"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
    RuntimeError("FIND was unable to find an engine to execute this computation"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    MemoryError(),
    numpys_own_error(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]

NOT_OUT_OF_MEMORY = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    ValueError("out of memory"),
    OSError(errno.ENOSPC, "No space left on device"),
    EngineError("the patch is too small"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: str(e)[:40] or type(e).__name__)
def test_out_of_memory_is_recognised(error):
    assert is_out_of_memory(error)
    wrapped = EngineError("the network failed")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped)


@pytest.mark.parametrize("error", NOT_OUT_OF_MEMORY, ids=lambda e: str(e)[:40])
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


def test_torch_s_own_error_on_the_cpu_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52, dtype=torch.float64)
    assert is_out_of_memory(caught.value)


class Small:
    """A network that fits only at or below one placement; remembers what was tried."""

    def __init__(self, fits: Placement, error: BaseException) -> None:
        self.fits, self.error = fits, error
        self.tried: list[Placement] = []

    def __call__(self, placement: Placement) -> str:
        self.tried.append(placement)
        if placement != self.fits:
            raise self.error
        return "done"


STEPS = fallbacks(Placement("cuda:0", "float32", 4), "bfloat16")


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: str(e)[:40] or type(e).__name__)
def test_each_kind_of_error_leads_down_to_what_fits(error):
    attempt, told = Small(STEPS[-1], error), []
    outcome = run_with_fallback(attempt, STEPS, told.append)
    assert outcome.value == "done"
    assert outcome.placement == Placement("cpu", "float32", 1)
    assert attempt.tried == list(STEPS)
    assert told == list(outcome.notes)
    assert told == [
        "The memory of cuda:0 is full: going on with 2 at a time instead of 4.",
        "The memory of cuda:0 is full: going on with 1 at a time instead of 2.",
        "The memory of cuda:0 is full: going on in half precision (bfloat16).",
        "The memory of cuda:0 is full: going on with the CPU, which is slower.",
    ]


def test_where_all_goes_well_nothing_is_told():
    attempt, told = Small(STEPS[0], MemoryError()), []
    outcome = run_with_fallback(attempt, STEPS, told.append)
    assert (outcome.placement, outcome.notes, told) == (STEPS[0], (), [])


def test_a_later_batch_goes_on_where_the_last_one_ended():
    first = run_with_fallback(Small(STEPS[2], MemoryError()), STEPS)
    rest = fallbacks(first.placement, "bfloat16")
    assert rest == STEPS[2:]


def test_where_nothing_fits_the_user_is_told_what_to_do():
    attempt = Small(Placement("nowhere"), MemoryError())
    with pytest.raises(EngineError, match=r"not enough memory, even on cpu.*smaller") as caught:
        run_with_fallback(attempt, STEPS)
    assert attempt.tried == list(STEPS)
    assert not isinstance(caught.value, RuntimeError)
    assert caught.value.__context__ is None


@pytest.mark.parametrize("error", [*NOT_OUT_OF_MEMORY, KeyboardInterrupt(), Cancelled("cancelled")])
def test_every_other_error_passes_through_at_once(error):
    attempt = Small(Placement("nowhere"), error)
    with pytest.raises(type(error)) as caught:
        run_with_fallback(attempt, STEPS)
    assert caught.value is error
    assert len(attempt.tried) == 1


def test_a_cancel_during_the_second_attempt_ends_the_run():
    monitor, tried = Monitor(), []

    def attempt(placement: Placement) -> None:
        tried.append(placement)
        monitor.step()
        raise MemoryError

    with pytest.raises(Cancelled):
        run_with_fallback(attempt, STEPS, lambda _: monitor.cancel())
    assert len(tried) == 2


def test_the_failed_attempt_s_tensors_are_gone_before_the_next(monkeypatch):
    left, freed = [], []

    def attempt(placement: Placement) -> bool:
        gone = [ref() is None for ref in left]
        big = torch.ones(8)
        left.append(weakref.ref(big))
        if len(left) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return all(gone)

    from napari_openmedlab.models import fallback

    # Whoever frees the cache must find the tensors dead already.
    monkeypatch.setattr(
        fallback, "free_memory", lambda card: freed.append((card, left[-1]() is None))
    )
    gc.disable()
    try:
        assert run_with_fallback(attempt, STEPS).value
    finally:
        gc.enable()
    assert freed == [("cuda:0", True)] * 2


def test_caches_of_the_card_are_emptied(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("cuda"))
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: emptied.append("mps"))
    for kind in ("cuda:1", "mps", "cpu"):
        device_module.free_memory(kind)
    assert emptied == ["cuda", "mps"]


def test_no_placement_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="no placements"):
        run_with_fallback(lambda placement: None, ())
