"""How well thin branching structures agree, each measure under its own name.

Strict Dice counts voxels: two-voxel-thick axons shifted by one voxel share half of them. Centre-
line F1 and clDice ask whether the same axons were found. The published tolerant measures
(D-LMBmap, ``upstream_*``) are here for comparison only: dilation flatters every score, and their
skeleton is not that of the soft clDice paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_openmedlab.errors import GeometryError
from napari_openmedlab.evaluation.metrics import dice

__all__ = [
    "CentreLineAgreement",
    "UpstreamAgreement",
    "centre_line_agreement",
    "cl_dice",
    "dice",
    "upstream_agreement",
    "upstream_cl_scores",
    "upstream_junk_ratio",
    "upstream_pooled",
    "upstream_skeleton",
]

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class CentreLineAgreement:
    """Centre-lines compared with a tolerance.

    Attributes
    ----------
    precision : float
        Share of the found centre-line that lies within the tolerance of the true one.
    recall : float
        Share of the true centre-line that lies within the tolerance of the found one.
    tolerance : float
        In the unit of the spacing that was given (voxels without one).
    """

    precision: float
    recall: float
    tolerance: float

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 if both are."""
        total = self.precision + self.recall
        return 2.0 * self.precision * self.recall / total if total else 0.0


def centre_line_agreement(
    found: NDArray[Any],
    truth: NDArray[Any],
    tolerance: float = 2.0,
    spacing: Spacing = (1.0, 1.0, 1.0),
) -> CentreLineAgreement:
    """Return the agreement of two centre-lines, each given as points.

    Parameters
    ----------
    found, truth : ndarray, shape (N, 3) and (M, 3)
        (z, y, x) in voxels: skeleton voxels, or samples of a traced line. Evenly spaced samples
        make the shares lengths.
    tolerance : float
        Euclidean distance that still counts as the same place, in the unit of ``spacing``.
    spacing : tuple of float
        Voxel size along (z, y, x).

    Notes
    -----
    If both are empty they agree (1, 1); if one is, precision and recall are 0.
    """
    if not len(found) or not len(truth):
        same = float(len(found) == len(truth))
        return CentreLineAgreement(same, same, tolerance)
    from scipy.spatial import cKDTree

    mine, theirs = (np.asarray(p, dtype=np.float64) * spacing for p in (found, truth))
    there = cKDTree(theirs).query(mine, distance_upper_bound=np.nextafter(tolerance, np.inf))[0]
    back = cKDTree(mine).query(theirs, distance_upper_bound=np.nextafter(tolerance, np.inf))[0]
    return CentreLineAgreement(
        float(np.isfinite(there).mean()), float(np.isfinite(back).mean()), tolerance
    )


def cl_dice(
    mask: NDArray[np.bool_],
    reference: NDArray[np.bool_],
    mask_skeleton: NDArray[np.bool_] | None = None,
    reference_skeleton: NDArray[np.bool_] | None = None,
) -> float:
    """Return clDice: harmonic mean of how much of each skeleton lies in the other mask.

    Parameters
    ----------
    mask, reference : ndarray of bool, same shape (z, y, x)
    mask_skeleton, reference_skeleton : ndarray of bool, optional
        By default Lee's 3D thinning of the masks.

    Notes
    -----
    S. Shit et al., "clDice - a novel topology-preserving loss function for tubular structure
    segmentation", CVPR 2021. Two empty masks agree (1); an empty and a filled one do not (0).
    """
    _check_shapes(mask, reference)
    if not mask.any() or not reference.any():
        return float(mask.any() == reference.any())
    from skimage.morphology import skeletonize

    mine = skeletonize(mask) > 0 if mask_skeleton is None else mask_skeleton
    theirs = skeletonize(reference) > 0 if reference_skeleton is None else reference_skeleton
    precision = _share(mine, reference)
    recall = _share(theirs, mask)
    return 2.0 * precision * recall / (precision + recall) if precision + recall else 0.0


def _share(skeleton: NDArray[np.bool_], mask: NDArray[np.bool_]) -> float:
    total = int(np.count_nonzero(skeleton))
    return int(np.count_nonzero(skeleton & mask)) / total if total else 0.0


def _check_shapes(mask: NDArray[Any], reference: NDArray[Any]) -> None:
    if mask.shape != reference.shape:
        raise GeometryError(
            f"the mask has shape {mask.shape}, its reference {reference.shape}; both must agree"
        )


# --- as D-LMBmap defines them, to compare with published figures -----------------------------


@dataclass(frozen=True)
class UpstreamAgreement:
    """D-LMBmap's voxel measures of one batch.

    Attributes
    ----------
    dice : float
        ``(2 sum(p l) + 1) / (sum p + sum l + 1)``.
    iou : float
    tolerant_iou : float
        The label grown by one voxel (6 neighbours) also counts as right.
    """

    dice: float
    iou: float
    tolerant_iou: float


def upstream_agreement(mask: NDArray[Any], label: NDArray[Any]) -> UpstreamAgreement:
    """Return D-LMBmap's Dice, IoU and tolerant IoU.

    Parameters
    ----------
    mask, label : ndarray, shape (..., z, y, x)
        0 and 1.
    """
    _check_shapes(mask, label)
    p, q = np.asarray(mask, np.float64), np.asarray(label, np.float64)
    both = float((p * q).sum())
    ring = _grown(q) - q
    error = float((p * ring + q + p - q * p).sum())
    return UpstreamAgreement(
        dice=(2.0 * both + 1.0) / (float(p.sum()) + float(q.sum()) + 1.0),
        iou=both / (float((p + q).sum()) - both + 1e-8),
        tolerant_iou=float((p * (q + ring)).sum()) / (error + 1e-8),
    )


def upstream_junk_ratio(mask: NDArray[Any], label: NDArray[Any]) -> float:
    """Return the share of all errors that lies in samples without any axon.

    Parameters
    ----------
    mask, label : ndarray, shape (batch, ..., z, y, x)
        0 and 1.
    """
    _check_shapes(mask, label)
    axes = tuple(range(1, mask.ndim))
    errors = np.abs(np.asarray(mask, np.float64) - np.asarray(label, np.float64)).sum(axis=axes)
    empty = ~np.asarray(label).astype(bool).any(axis=axes)
    return float(errors[empty].sum() / (errors.sum() + 1e-10))


def upstream_skeleton(values: NDArray[Any], rounds: int = 5) -> NDArray[np.float32]:
    """Return D-LMBmap's soft skeleton; hard labels one or two voxels thin stay as they are.

    Parameters
    ----------
    values : ndarray, shape (..., z, y, x)
        Probabilities or 0 and 1.
    rounds : int
    """
    from scipy import ndimage

    lead = (1,) * (np.ndim(values) - 3)
    cross = ndimage.generate_binary_structure(3, 1).reshape(*lead, 3, 3, 3)
    left = np.asarray(values, dtype=np.float32)
    for _ in range(rounds):
        inner = ndimage.minimum_filter(left, footprint=cross, mode="nearest")
        outer = ndimage.maximum_filter(inner, size=(*lead, 3, 3, 3), mode="nearest")
        left = np.maximum(left - np.maximum(outer - inner, 0.0), 0.0)
    return left


def upstream_cl_scores(mask: NDArray[Any], label: NDArray[Any]) -> tuple[float, float]:
    """Return D-LMBmap's clRecall and clPrecision, sums over the whole batch.

    Parameters
    ----------
    mask, label : ndarray, shape (..., z, y, x)
        Probabilities or 0 and 1.
    """
    _check_shapes(mask, label)

    def share(of: NDArray[Any], within: NDArray[Any]) -> float:
        thin = upstream_skeleton(of).astype(np.float64)
        return float(((thin * within).sum() + 1e-12) / (thin.sum() + 1e-12))

    return share(label, mask), share(mask, label)


def upstream_pooled(mask: NDArray[Any], kernel: int, stride: int) -> NDArray[Any]:
    """Return the maxima of windows, as D-LMBmap takes them before its measures.

    Parameters
    ----------
    mask : ndarray, shape (..., z, y, x)
    kernel, stride : int
        Edge of a window and distance of windows; no window reaches over the border.
    """
    windows = np.lib.stride_tricks.sliding_window_view(mask, (kernel,) * 3, axis=(-3, -2, -1))
    picked = windows[..., ::stride, ::stride, ::stride, :, :, :]
    pooled: NDArray[Any] = picked.max(axis=(-3, -2, -1))
    return pooled


def _grown(label: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy import ndimage

    lead = (1,) * (label.ndim - 3)
    cross = ndimage.generate_binary_structure(3, 1).reshape(*lead, 3, 3, 3)
    grown: NDArray[np.float64] = ndimage.maximum_filter(label, footprint=cross, mode="nearest")
    return grown
