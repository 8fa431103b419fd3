"""Losses for axons against reference values; the clDice term pulls in the right direction."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402

from napari_openmedlab.training.axon_losses import (  # noqa: E402
    AxonLoss,
    cl_dice_loss,
    soft_skeleton,
)


@pytest.fixture(scope="module")
def sample(golden):
    folder = golden / "axon_seg"
    stored = np.load(folder / "loss_inputs.npz")
    tensors = {name: torch.from_numpy(stored[name].astype(np.float32)) for name in stored}
    return tensors, json.loads((folder / "loss_values.json").read_text())


def test_soft_skeleton_and_cl_dice(sample, golden):
    tensors, values = sample
    probability = torch.sigmoid(tensors["logit"])
    stored = np.load(golden / "axon_seg" / "softskel.npz")
    np.testing.assert_allclose(soft_skeleton(probability), stored["prob_skel"], atol=1e-6)
    loss = float(cl_dice_loss(probability, tensors["label"]))
    assert loss == pytest.approx(values["soft_cldice_loss(prob)"], abs=1e-6)


@pytest.mark.parametrize("whole_batch", [False, True])
def test_dice_and_cross_entropy_at_one_scale_and_at_five(sample, whole_batch):
    tensors, values = sample
    two, classes = tensors["two"], tensors["label"][:, 0]
    loss = AxonLoss(whole_batch=whole_batch)
    end = f"batch_dice={whole_batch}"
    assert float(loss(two, classes)) == pytest.approx(
        values[f"DC_and_CE(two-class logits, {end})"], abs=1e-6
    )
    (deep,) = (v for k, v in values.items() if k.startswith("deep") and end in k)
    scales = [two, *(functional.avg_pool3d(two, k) for k in (2, 4, 8, 12))]
    assert float(loss(scales, classes)) == pytest.approx(deep, abs=1e-6)


def test_the_cl_dice_term_has_a_gradient_towards_the_label(sample):
    tensors, _ = sample
    classes = tensors["label"][:, 0]
    logits = torch.zeros_like(tensors["two"], requires_grad=True)
    (AxonLoss(cl_dice=1.0)(logits, classes) - AxonLoss()(logits, classes)).backward()
    on_axon = logits.grad[:, 1][classes == 1]
    assert float(on_axon.mean()) < 0
