"""A network with SliceSam's interface that segments bright regions: it shows where prompts land.

Not one of the published networks. It lets tests of the slice engines ask whether the mask comes
out where the object is, which stand-in weights cannot tell.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from scipy import ndimage as ndi
from torch.nn import functional

from napari_openmedlab.models.device import Placement
from napari_openmedlab.models.engines import weights


class GreyNetwork:
    """Answers with the bright pixels in the box, and of those the pieces under positive points."""

    def __init__(self, size):
        self.size, self.low = size, size // 4
        self.pixel_mean = torch.full((3, 1, 1), 100.0)
        self.pixel_std = torch.full((3, 1, 1), 50.0)
        self.image_encoder = SimpleNamespace(blocks=torch.nn.ModuleList())
        self.encoded = self.decoded = 0
        self.batches = []
        self.fed = []

    def encode(self, images):
        assert images.shape[1:] == (3, self.size, self.size)
        assert images.dtype == torch.float32
        self.encoded += len(images)
        self.batches.append(len(images))
        return functional.avg_pool2d(images.mean(dim=1, keepdim=True), 4)

    def decode(self, embeddings, points=None, labels=None, boxes=None, masks=None):
        self.decoded += 1
        self.fed.append(masks)
        answers = [
            self._one(
                embeddings[n, 0].numpy(),
                None if points is None else points[n].numpy(),
                None if labels is None else labels[n].numpy(),
                None if boxes is None else boxes[n].numpy(),
                None if masks is None else masks[n, 0].numpy(),
            )
            for n in range(len(embeddings))
        ]
        found = torch.from_numpy(np.stack(answers)).float()
        logits = torch.stack([found * 10 - 5] * 4, dim=1)
        seen = found.flatten(1).any(dim=1)[:, None]
        return logits, torch.where(seen, 0.9, 0.2) * torch.tensor([[0.9, 0.8, 1.0, 0.7]])

    def _one(self, image, points, labels, box, mask):
        bright = image > (image.min() + image.max()) / 2
        allowed = np.ones_like(bright)
        if box is not None:
            x0, y0, x1, y1 = box / 4
            y, x = np.indices(bright.shape) + 0.5
            allowed = (x > x0 - 1) & (x < x1 + 1) & (y > y0 - 1) & (y < y1 + 1)
        found = bright & allowed
        pieces, _ = ndi.label(found)
        if mask is not None and box is None:
            under = np.unique(pieces[(mask > 0.5) & found])
            found = np.isin(pieces, under[under > 0])
        if points is None:
            return found
        for (x, y), label in zip(points, labels, strict=True):
            row, column = (int(min(max(v / 4, 0), self.low - 1)) for v in (y, x))
            near = np.hypot(*(np.indices(found.shape) - np.array([row, column])[:, None, None]))
            if label == 0:
                found = found & (near > 3)
            elif pieces[row, column] and mask is None:
                found = found & (pieces == pieces[row, column])
            else:
                found = found | (near <= 3)
        return found


class Record:
    """What the store would say of it."""

    network = checkpoint = name = "grey"
    sha256 = source_sha256 = "0" * 64


def install(monkeypatch, size, batch=1, device="cpu"):
    """Let every engine run a grey network; return it."""
    network = GreyNetwork(size)

    def run(self, options, monitor, attempt):
        monitor.step(0, 0, "loading")
        return attempt(weights.Loaded(network, Record(), Placement(device, "float32", batch)))

    monkeypatch.setattr(weights.Weights, "run", run)
    return network
