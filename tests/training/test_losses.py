"""The loss, its gradients and the learning rate are those of PyMIC, which MIS-FM trains with."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from napari_openmedlab.training.losses import (  # noqa: E402
    cross_entropy,
    deep_loss,
    dice_loss,
    one_hot,
)
from napari_openmedlab.training.schedule import factor  # noqa: E402
from napari_openmedlab.training.settings import LoopSettings  # noqa: E402


@pytest.fixture
def stored(golden):
    with np.load(golden / "mis_fm" / "loss.npz") as file:
        arrays = dict(file)
    return arrays, json.loads((golden / "mis_fm" / "loss.json").read_text())


def test_dice_and_cross_entropy_are_the_published_ones(stored):
    arrays, wanted = stored
    probabilities = torch.from_numpy(arrays["logits0"]).softmax(1)
    target = one_hot(torch.from_numpy(arrays["label"]), 3)
    assert float(dice_loss(probabilities, target)) == pytest.approx(wanted["dice"], abs=1e-6)
    assert float(cross_entropy(probabilities, target)) == pytest.approx(wanted["ce"], abs=1e-6)
    single = deep_loss(torch.from_numpy(arrays["logits0"]), torch.from_numpy(arrays["label"]))
    assert float(single) == pytest.approx(wanted["combined"], abs=1e-6)


def test_deep_supervision_and_its_gradients_are_the_published_ones(stored):
    arrays, wanted = stored
    logits = [torch.from_numpy(arrays[f"logits{n}"]).requires_grad_() for n in range(4)]
    loss = deep_loss(logits, torch.from_numpy(arrays["label"]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(wanted["deep_mode2"], abs=1e-6)
    for number, scale in enumerate(logits):
        # Absolute: the largest gradients are about 1e-3.
        np.testing.assert_allclose(scale.grad, arrays[f"grad_deep2_{number}"], atol=1e-8)


@pytest.mark.slow
def test_dice_equals_monai(stored):
    losses = pytest.importorskip("monai.losses.dice")
    arrays, _ = stored
    logits = torch.from_numpy(arrays["logits0"])
    target = one_hot(torch.from_numpy(arrays["label"]), 3)
    theirs = losses.DiceLoss(softmax=True, batch=True)(logits, target)
    assert float(dice_loss(logits.softmax(1), target)) == pytest.approx(float(theirs), abs=1e-6)


def test_the_rate_falls_as_published(golden):
    wanted = json.loads((golden / "mis_fm" / "lr_schedule.json").read_text())
    published = LoopSettings(6000)
    for step, rate in enumerate(wanted["lr_per_250_iterations"]):
        for iteration in (250 * step, 250 * step + 249):
            assert 1e-3 * factor(iteration, published) == pytest.approx(rate, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.integers(1, 40), st.floats(0, 2))
def test_the_rate_starts_whole_never_rises_and_stays_above_zero(iterations, steps, power):
    chosen = LoopSettings(iterations, rate_steps=steps, rate_power=power)
    rates = [factor(iteration, chosen) for iteration in range(iterations)]
    assert rates[0] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates))
    assert rates[-1] > 0


def test_a_perfect_answer_costs_next_to_nothing_and_a_wrong_one_much():
    classes = torch.zeros(1, 8, 8, 8, dtype=torch.uint8)
    classes[0, 2:5] = 1
    right = 20 * (one_hot(classes, 2) - 0.5)
    assert float(deep_loss(right, classes)) < 1e-3
    assert float(deep_loss(-right, classes)) > 1.0
