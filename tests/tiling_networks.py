"""Networks for tests of tiling: a formula, a small STU-Net, and one that counts what it does."""

from __future__ import annotations

import torch
from golden_networks import load_filled

from napari_openmedlab.models.networks.stu_net import STUNet
from napari_openmedlab.models.tiling.run import PlainScores


def probe(patches):
    """The golden files' closed form: four classes that depend on value and place."""
    x = patches[:, 0]
    lines = []
    for axis, size in enumerate(x.shape[1:]):
        shape = [-1 if axis == other else 1 for other in range(3)]
        lines.append(torch.arange(size, dtype=torch.float32).reshape(shape) / size)
    i, j, k = lines
    last = 0.5 * i**2 - 0.3 * j**3 + 0.2 * k - 0.1 * x
    classes = [x, x * (1 + i**2) - 0.5 * j, 0.25 * x**2 - k**2, last]
    return PlainScores(torch.stack(classes, 1))


def tiny():
    """The golden files' small STU-Net with stand-in weights."""
    network = load_filled(STUNet(1, 5, widths=[4 * n for n in (1, 2, 4, 8, 16, 16)], blocks=1))

    def run(patches):
        with torch.inference_mode():
            return PlainScores(network(patches))

    return run


class ByValue:
    """Classes by intensity alone: class ``n`` is likeliest at ``n * step``; counts its calls."""

    def __init__(self, classes, step=1.0, sharp=4.0):
        self.centres = torch.arange(classes, dtype=torch.float32) * step
        self.sharp = sharp / step
        self.batches = []

    def __call__(self, patches):
        self.batches.append(len(patches))
        away = (patches - self.centres.view(1, -1, 1, 1, 1)).abs()
        return PlainScores(-self.sharp * away)
