"""How each published model takes a slice and gives a mask back, to the pixel.

All share one network interface (:class:`~napari_openmedlab.models.networks.sam.SliceSam`); they
differ in resizing, normalising, what they accept as prompts, which of the four masks is the
answer, and the way back to the slice. Coordinates on a slice are pixel indices; the half pixel
is added inside the network's prompt encoder. Sources: OpenGVLab/SAM-Med2D (arXiv 2308.16184),
facebookresearch/segment-anything (arXiv 2304.02643), bowang-lab/MedSAM (arXiv 2304.12306),
openmedlab/MedLSAM (arXiv 2306.14752).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch.nn import functional

__all__ = [
    "MedLsamProtocol",
    "MedSamProtocol",
    "PaddedProtocol",
    "Protocol",
    "SamMed2DProtocol",
    "SamProtocol",
    "nearest_index",
]

Shape = tuple[int, int]
ToGrey = Callable[[NDArray[Any]], NDArray[np.uint8]]

_CERTAIN = 8.0  # raw logit that stands for a pixel of a mask made elsewhere


def nearest_index(count: int, size: int) -> NDArray[np.intp]:
    """Return the source index of each of ``size`` targets, as OpenCV's nearest neighbour has it.

    In double precision: whole-number arithmetic and torch give another index for some sizes.
    """
    index: NDArray[np.intp] = np.floor(np.arange(size) * (1.0 / (size / count))).astype(np.intp)
    return index.clip(max=count - 1)


class Protocol:
    """What the models have in common; each class below is one published way.

    Attributes
    ----------
    name : str
        Part of an embedding's signature: equal weights may be fed in different ways.
    size : int
        Side of the network's input; a quarter of it is the side of its masks.
    takes_points : bool
        Whether it was trained with points and mask prompts; otherwise with boxes only.
    keeps_box : bool
        Whether the box stays a prompt when points are added to an answer.
    mask_needs_box : bool
        Whether a mask prompt without points goes with the box around it.
    margin : float
        Pixels of the network's input added around a neighbour's mask when a box is made of it.
    ahead : int
        Slices on either side of the one shown that are worth encoding ahead.
    """

    name = ""
    size = 1024
    takes_points = True
    keeps_box = True
    mask_needs_box = True
    margin = 5.0
    ahead = 2

    def picture(self, plane: NDArray[Any], grey: ToGrey) -> NDArray[np.uint8]:
        """Return the resized slice in grey levels: all that decides its embedding.

        Parameters
        ----------
        plane : ndarray, shape (rows, columns) or (rows, columns, 3)
        grey : callable
            Turns intensities into levels 0..255.
        """
        raise NotImplementedError

    def to_input(self, pictures: Any, network: Any) -> Any:
        """Return the network's input (B, 3, size, size) for pictures (B, h, w[, 3]) of uint8."""
        raise NotImplementedError

    def to_model(self, places: ArrayLike, shape: Shape) -> NDArray[np.float32]:
        """Return (x, y) of the network's input for (row, column) of a slice, both (..., 2)."""
        raise NotImplementedError

    def frame(self, mask: Any, shape: Shape) -> Any:
        """Return a mask (1, 1, rows, columns) of a slice on the input's pixels, as shares."""
        raise NotImplementedError

    def values(self, logits: Any, shape: Shape) -> Any:
        """Return what is thresholded: (B, rows, columns) for logits (B, size/4, size/4)."""
        raise NotImplementedError

    def masks(self, logits: Any, shape: Shape) -> Any:
        """Return masks (B, rows, columns) of bool on the slice."""
        return self.values(logits, shape) > 0

    def box_to_model(self, box: ArrayLike, shape: Shape) -> NDArray[np.float32]:
        """Return a rectangle (r0, c0, r1, c1) of a slice as (x0, y0, x1, y1) of the input."""
        return self.to_model(np.reshape(box, (2, 2)), shape).reshape(4)

    def feedback(self, logits: Any) -> Any:
        """Return the mask prompt that stands for an answer's low-resolution logits."""
        return logits

    def from_mask(self, mask: NDArray[np.bool_]) -> Any:
        """Return the mask prompt (1, size/4, size/4) for a mask on a slice."""
        plain = torch.from_numpy(np.ascontiguousarray(mask)).float()[None, None]
        share = functional.avg_pool2d(self.frame(plain, mask.shape[:2]), 4)[0]
        return self.from_share(share)

    def from_share(self, share: Any) -> Any:
        """Return a mask prompt for the share of each low-resolution cell that a mask covers."""
        return (2 * share - 1) * _CERTAIN

    def choose(self, masks: Any, scores: Any, *, single: bool) -> tuple[Any, Any]:
        """Return the answers (B, h, w) and their scores (B,) out of (B, 4, h, w) and (B, 4).

        Parameters
        ----------
        single : bool
            Take the first mask, the one for prompts without ambiguity; otherwise the best of
            the other three by the predicted intersection over union.
        """
        if single:
            return masks[:, 0], scores[:, 0]
        best = 1 + scores[:, 1:].argmax(dim=1)
        each = torch.arange(len(masks), device=masks.device)
        return masks[each, best], scores[each, best]

    def _channels(self, pictures: Any) -> Any:
        """Return (B, 3, h, w) of float; grey levels go to all three channels."""
        if pictures.ndim == 3:
            return pictures[:, None].float().expand(-1, 3, -1, -1)
        return pictures.permute(0, 3, 1, 2).float()

    def _normalised(self, pictures: Any, network: Any) -> Any:
        return (self._channels(pictures) - network.pixel_mean) / network.pixel_std


class SamMed2DProtocol(Protocol):
    """SAM-Med2D and FT-SAM: 256 x 256 by nearest neighbour, sigmoid as mask prompt.

    As the published predictor. The box is a prompt of the first step only: further steps have
    all points so far and the last answer's sigmoid, as it was trained and evaluated.
    """

    name = "sam-med2d"
    size = 256
    keeps_box = False
    mask_needs_box = False
    margin = 2.0
    ahead = 2

    def picture(self, plane: NDArray[Any], grey: ToGrey) -> NDArray[np.uint8]:
        """Pick the pixels first, then turn them grey: the same numbers with less work."""
        rows, columns = (nearest_index(n, self.size) for n in plane.shape[:2])
        return grey(plane[rows[:, None], columns])

    def to_input(self, pictures: Any, network: Any) -> Any:
        """Normalise by the published mean and standard deviation."""
        return self._normalised(pictures, network)

    def to_model(self, places: ArrayLike, shape: Shape) -> NDArray[np.float32]:
        """Scale rows and columns each by itself, without a half-pixel correction."""
        return _as_xy(np.asarray(places, dtype=np.float64) * (self.size / np.array(shape)))

    def frame(self, mask: Any, shape: Shape) -> Any:
        """Average the mask over each pixel of the input."""
        return functional.interpolate(mask, size=(self.size, self.size), mode="area")

    def values(self, logits: Any, shape: Shape) -> Any:
        """Probabilities; the logits go to 256 x 256 first, then to the slice."""
        middle = _bilinear(logits, (self.size, self.size))
        return torch.sigmoid(_bilinear(middle, shape))

    def masks(self, logits: Any, shape: Shape) -> Any:
        """Probability above one half."""
        return self.values(logits, shape) > 0.5

    def feedback(self, logits: Any) -> Any:
        """Return the sigmoid, as in training; raw logits would be another model's way."""
        return torch.sigmoid(logits)

    def from_share(self, share: Any) -> Any:
        """Return the share itself: it lies where a sigmoid lies."""
        return share


class PaddedProtocol(SamMed2DProtocol):
    """SAM-Med2D's evaluation protocol: slices below 256 x 256 are padded, not enlarged.

    The published accuracies were presumably measured this way. Slices with a side of 256 or
    more go the usual way.
    """

    name = "sam-med2d padded"

    def picture(self, plane: NDArray[Any], grey: ToGrey) -> NDArray[np.uint8]:
        """Leave small slices as they are."""
        return grey(plane) if self._is_small(plane.shape) else super().picture(plane, grey)

    def to_input(self, pictures: Any, network: Any) -> Any:
        """Pad after normalising: the fill is the mean colour."""
        plain = self._normalised(pictures, network)
        rows, columns = (int(n) for n in plain.shape[-2:])
        if (rows, columns) == (self.size, self.size):
            return plain
        top, left = self._corner((rows, columns))
        below, right = self.size - rows - top, self.size - columns - left
        return functional.pad(plain, (left, right, top, below))

    def to_model(self, places: ArrayLike, shape: Shape) -> NDArray[np.float32]:
        """Shift instead of scaling."""
        if not self._is_small(shape):
            return super().to_model(places, shape)
        return _as_xy(np.asarray(places, dtype=np.float64) + self._corner(shape))

    def frame(self, mask: Any, shape: Shape) -> Any:
        """Pad the mask like the slice."""
        if not self._is_small(shape):
            return super().frame(mask, shape)
        top, left = self._corner(shape)
        below, right = self.size - shape[0] - top, self.size - shape[1] - left
        return functional.pad(mask, (left, right, top, below))

    def values(self, logits: Any, shape: Shape) -> Any:
        """Probabilities cut out of the input's pixels."""
        if not self._is_small(shape):
            return super().values(logits, shape)
        top, left = self._corner(shape)
        middle = _bilinear(logits, (self.size, self.size))
        return torch.sigmoid(middle[:, top : top + shape[0], left : left + shape[1]])

    def _is_small(self, shape: tuple[int, ...]) -> bool:
        return shape[0] < self.size and shape[1] < self.size

    def _corner(self, shape: Shape) -> Shape:
        return (self.size - shape[0]) // 2, (self.size - shape[1]) // 2


class SamProtocol(Protocol):
    """SAM: longest side to 1024 with antialias, padded right and below; raw logits as prompt."""

    name = "sam"
    ahead = 1

    def picture(self, plane: NDArray[Any], grey: ToGrey) -> NDArray[np.uint8]:
        """Resize by Pillow's bilinear filter, which is what SAM's own transform calls."""
        rows, columns = self._inner(plane.shape)
        resized = Image.fromarray(grey(plane)).resize((columns, rows), Image.Resampling.BILINEAR)
        return np.array(resized)

    def to_input(self, pictures: Any, network: Any) -> Any:
        """Normalise by the published mean and standard deviation, then pad with zeros."""
        plain = self._normalised(pictures, network)
        rows, columns = plain.shape[-2:]
        return functional.pad(plain, (0, self.size - columns, 0, self.size - rows))

    def to_model(self, places: ArrayLike, shape: Shape) -> NDArray[np.float32]:
        """Scale by the resized over the original side."""
        factor = np.array(self._inner(shape)) / np.array(shape)
        return _as_xy(np.asarray(places, dtype=np.float64) * factor)

    def frame(self, mask: Any, shape: Shape) -> Any:
        """Average the mask over each pixel of the input; nothing in the padding."""
        rows, columns = self._inner(shape)
        inner = functional.interpolate(mask, size=(rows, columns), mode="area")
        return functional.pad(inner, (0, self.size - columns, 0, self.size - rows))

    def values(self, logits: Any, shape: Shape) -> Any:
        """Logits; they go to 1024 x 1024, lose the padding, then go to the slice."""
        rows, columns = self._inner(shape)
        return _bilinear(_bilinear(logits, (self.size, self.size))[:, :rows, :columns], shape)

    def _inner(self, shape: tuple[int, ...]) -> Shape:
        """Return the resized rows and columns."""
        scale = self.size * 1.0 / max(shape[0], shape[1])
        return int(shape[0] * scale + 0.5), int(shape[1] * scale + 0.5)


class MedSamProtocol(Protocol):
    """MedSAM: both sides to 1024 by cubic splines, values 0 to 1, a box as its only prompt."""

    name = "medsam"
    takes_points = False
    ahead = 1
    order = 3

    def picture(self, plane: NDArray[Any], grey: ToGrey) -> NDArray[np.uint8]:
        """Resize by scikit-image with antialias; fractions are cut off."""
        from skimage.transform import resize

        resized = resize(
            grey(plane),
            (self.size, self.size),
            order=self.order,
            preserve_range=True,
            anti_aliasing=True,
        )
        return np.asarray(resized, dtype=np.uint8)

    def to_input(self, pictures: Any, network: Any) -> Any:
        """Stretch each picture to 0..1; no mean and standard deviation."""
        plain = self._channels(pictures)
        low = plain.amin(dim=(1, 2, 3), keepdim=True)
        high = plain.amax(dim=(1, 2, 3), keepdim=True)
        return (plain - low) / (high - low).clamp(min=1e-8)

    def to_model(self, places: ArrayLike, shape: Shape) -> NDArray[np.float32]:
        """Scale rows and columns each by itself."""
        return _as_xy(np.asarray(places, dtype=np.float64) / np.array(shape) * self.size)

    def frame(self, mask: Any, shape: Shape) -> Any:
        """Average the mask over each pixel of the input."""
        return functional.interpolate(mask, size=(self.size, self.size), mode="area")

    def values(self, logits: Any, shape: Shape) -> Any:
        """Probabilities, interpolated as such."""
        return _bilinear(torch.sigmoid(logits), shape)

    def masks(self, logits: Any, shape: Shape) -> Any:
        """Probability above one half."""
        return self.values(logits, shape) > 0.5


class MedLsamProtocol(MedSamProtocol):
    """MedSAM's weights fed as MedLSAM published it: for comparing with its figures.

    Quadratic splines, SAM's mean and standard deviation, boxes rounded and 10 pixels wider on
    each side, the way back by nearest neighbour.
    """

    name = "medlsam"
    order = 2
    _room = 10.0

    def to_input(self, pictures: Any, network: Any) -> Any:
        """Normalise by SAM's mean and standard deviation."""
        return self._normalised(pictures, network)

    def box_to_model(self, box: ArrayLike, shape: Shape) -> NDArray[np.float32]:
        """Round the corners and add the margin, within the input."""
        corners = np.rint(super().box_to_model(box, shape))
        wider = corners + np.array([-1, -1, 1, 1]) * self._room
        return np.clip(wider, 0, self.size).astype(np.float32)

    def values(self, logits: Any, shape: Shape) -> Any:
        """Probabilities at 1024 x 1024, then the nearest ones."""
        middle = _bilinear(torch.sigmoid(logits), (self.size, self.size))
        rows, columns = (nearest_index(self.size, n).tolist() for n in shape)
        return middle[:, rows][:, :, columns]


def _bilinear(maps: Any, shape: Shape) -> Any:
    """Interpolate (B, h, w) to (B, *shape) in float32, pixel areas aligned, not their corners."""
    return functional.interpolate(
        maps[:, None].float(), size=shape, mode="bilinear", align_corners=False
    )[:, 0]


def _as_xy(places: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return (x, y) for (row, column)."""
    turned: NDArray[np.float32] = places[..., ::-1].astype(np.float32)
    return turned
