"""FT-SAM and SAM-Med2D: SAM ViT-B for 256 x 256 pixels, SAM-Med2D with adapters.

State dicts equal the published ``ft-sam_b.pth`` (314 entries) and ``sam-med2d_b.pth`` (386) in
keys, order and shapes. Facts: OpenGVLab/SAM-Med2D (Apache-2.0), arXiv 2308.16184.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from napari_openmedlab.models.networks.sam import SliceSam, vit_b

__all__ = ["Adapter", "build_ft_sam", "build_sam_med2d"]

_IMAGE_SIZE = 256


class Adapter(nn.Module):
    """What SAM-Med2D adds to each encoder block: a channel gate and a small spatial hourglass.

    Parameters
    ----------
    width : int
        Channels of the grid.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = width // 4
        # Registered in the published order. Its epsilon is torch's 1e-5, not the encoder's 1e-6.
        self.norm = nn.LayerNorm(width)
        self.channel = nn.Sequential(
            nn.Linear(width, squeezed, bias=False),
            nn.ReLU(),
            nn.Linear(squeezed, width, bias=False),
            nn.Sigmoid(),
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, kernel_size=4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )

    def forward(self, grid: Any) -> Any:
        """Map (batch, rows, columns, width) to the same shape; rows and columns even."""
        gate = self.channel(grid.mean(dim=(1, 2)))
        gated = grid * gate[:, None, None, :]
        # Contiguous: else torch turns the large kernels into the grid's layout at every call.
        spatial = self.spatial(gated.permute(0, 3, 1, 2).contiguous()).permute(0, 2, 3, 1)
        # The way past the hourglass starts before the gate.
        return self.norm(grid + spatial)


def build_ft_sam() -> SliceSam:
    """Build FT-SAM (256 pixels, 90.7 M parameters)."""
    return vit_b(_IMAGE_SIZE)


def build_sam_med2d(adapters: bool = True) -> SliceSam:
    """Build SAM-Med2D (256 pixels, 271.2 M parameters).

    Parameters
    ----------
    adapters : bool
        False builds the published form "SAM-Med2D without adapters": the same file without its
        72 adapter entries, 90.7 M parameters, faster and less accurate.
    """
    network = vit_b(_IMAGE_SIZE)
    if adapters:
        for block in network.image_encoder.blocks:
            block.Adapter = Adapter(block.norm1.normalized_shape[0])
    return network
