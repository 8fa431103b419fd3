"""SAM-Med3D in upstream's order of operations: the whole scan is resampled, then cropped.

Written from the description of the published pipeline (clamp, 1.5 mm, canonical axes, crop or
pad, z-score, encoder, decoder, nearest voxel back), with the libraries that such pipelines
use. It is the measure of the engine, which samples crops straight from the scan: tests compare
the masks, the benchmark the time. Nothing in the package uses it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from sam_med3d_reference import use_reference

from napari_openmedlab.geometry.volume import Geometry, Volume

CROP = 128
SPACING = 1.5
CT_LIMITS = (-1000, 1000)
_LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass
class Stages:
    """Seconds spent, by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())


@dataclass
class Prepared:
    """What stands after pre-processing.

    Attributes
    ----------
    canonical : nibabel.Nifti1Image
        The whole scan at 1.5 mm, axes (R, A, S).
    start : ndarray of int, shape (3,)
        Index of the crop's first voxel; may be negative.
    raw : ndarray, shape (128, 128, 128)
        Intensities of the crop, 0 beyond the scan.
    pixels : ndarray of float32
        Their z-scores.
    """

    canonical: Any
    start: np.ndarray
    raw: np.ndarray
    pixels: np.ndarray

    @property
    def affine(self) -> np.ndarray:
        """Crop index to RAS mm."""
        shift = np.eye(4)
        shift[:3, 3] = self.start
        return self.canonical.affine @ shift


def prepare(
    volume: Volume, point: Sequence[float], stages: Stages | None = None, *, ct: bool = True
) -> Prepared:
    """Clamp, resample and reorient the whole scan, cut the crop around a click, normalise it.

    Parameters
    ----------
    volume : Volume
        Of a patient, in memory.
    point : (x, y, z)
        The click, LPS mm; it comes to lie at index 64.
    """
    stages = stages or Stages()
    with stages.stage("clamp"):
        array = np.clip(volume.array, *CT_LIMITS) if ct else volume.array
    with stages.stage("resample the scan"):
        image = resampled(itk_image(array, volume.geometry))
    with stages.stage("canonical axes"):
        canonical = as_canonical(image)
        data = np.ascontiguousarray(canonical.dataobj)
    with stages.stage("crop and normalise"):
        ras = _LPS_RAS @ np.append(point, 1.0)
        voxel = np.floor((np.linalg.inv(canonical.affine) @ ras)[:3] + 0.5)
        voxel = np.clip(voxel, 0, np.array(data.shape) - 1).astype(int)
        raw = cropped(data, voxel - CROP // 2)
        pixels = normalised(raw)
    return Prepared(canonical, voxel - CROP // 2, raw, pixels)


def itk_image(array: np.ndarray, geometry: Geometry) -> sitk.Image:
    """Return an array (z, y, x) as an image with its place in the patient."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetOrigin(geometry.affine[:3, 3].tolist())
    image.SetSpacing([float(s) for s in geometry.spacing[::-1]])
    direction = geometry.affine[:3, 2::-1] / np.array(geometry.spacing[::-1])
    image.SetDirection(direction.ravel().tolist())
    return image


def resampled(image: sitk.Image, spacing: float = SPACING) -> sitk.Image:
    """Return an image at an isotropic spacing, linear, its pixel type kept, centre unmoved."""
    old_size, old = np.array(image.GetSize()), np.array(image.GetSpacing())
    size = np.where(old_size == 1, 1, np.floor(old_size * old / spacing)).astype(int)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    centre = np.array(image.GetOrigin()) + direction @ (old * (old_size - 1) / 2)
    origin = centre - direction @ (spacing * (size - 1) / 2)
    return sitk.Resample(
        image,
        size.tolist(),
        sitk.Transform(),
        sitk.sitkLinear,
        origin.tolist(),
        [spacing] * 3,
        image.GetDirection(),
        0.0,
        image.GetPixelID(),
    )


def as_canonical(image: sitk.Image) -> Any:
    """Return an image with axes nearest to (R, A, S)."""
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine[:3, :3] = direction * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    array = sitk.GetArrayViewFromImage(image).transpose(2, 1, 0)
    return nibabel.as_closest_canonical(nibabel.Nifti1Image(array, _LPS_RAS @ affine))


def cropped(data: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return 128 voxels along each axis from ``start`` on, 0 where there are none."""
    result = np.zeros((CROP,) * 3, data.dtype)
    low = np.maximum(start, 0)
    high = np.maximum(low, np.minimum(start + CROP, data.shape))
    here = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
    result[here] = data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    return result


def normalised(raw: np.ndarray) -> np.ndarray:
    """Return z-scores by mean and unbiased deviation of the voxels above 0."""
    values = torch.from_numpy(raw.astype(np.float32))
    chosen = values[values > 0]
    return ((values - chosen.mean()) / chosen.std()).numpy()


class UpstreamOrder:
    """The whole pipeline around one network.

    Parameters
    ----------
    network : torch.nn.Module
        SAM-Med3D of the package.
    reference : bool
        Let its encoder attend in the written-out form, as upstream does.
    """

    def __init__(self, network: Any, *, reference: bool = True) -> None:
        self.network = network
        self._reference = reference

    def first(self, volume: Volume, point: Sequence[float]) -> tuple[np.ndarray, Stages]:
        """Return the mask after a first positive click, shape of the scan, and the seconds."""
        stages = Stages()
        prepared = prepare(volume, point, stages)
        form = use_reference(self.network.image_encoder) if self._reference else nullcontext()
        with torch.inference_mode(), stages.stage("encoder"), form:
            embedding = self.network.encode(torch.from_numpy(prepared.pixels)[None, None])
        with torch.inference_mode(), stages.stage("decoder"):
            points = torch.full((1, 1, 3), CROP / 2)
            prompt = torch.zeros(1, 1, 32, 32, 32)
            logits, _ = self.network.decode(embedding, points, torch.ones(1, 1), prompt)
            cube = F.interpolate(logits, size=(CROP,) * 3, mode="trilinear", align_corners=False)
            mask = (torch.sigmoid(cube) > 0.5)[0, 0].numpy()
        with stages.stage("paste back"):
            found = pasted(mask, prepared.affine, volume.geometry)
        return found, stages


def pasted(mask: np.ndarray, affine: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Return a crop's mask on the scan's grid, by nearest voxel; False outside the crop.

    Parameters
    ----------
    mask : ndarray of bool, axes (R, A, S)
    affine : ndarray, shape (4, 4)
        Crop index to RAS mm.
    """
    lps = _LPS_RAS @ affine
    crop = sitk.GetImageFromArray(np.ascontiguousarray(mask.transpose(2, 1, 0).astype(np.uint8)))
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    crop.SetSpacing(spacing.tolist())
    crop.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    crop.SetOrigin(lps[:3, 3].tolist())
    frame = _frame(geometry)
    found = sitk.Resample(crop, *frame[:1], sitk.Transform(), sitk.sitkNearestNeighbor, *frame[1:])
    return sitk.GetArrayFromImage(found).astype(bool)


def _frame(geometry: Geometry) -> tuple[Any, ...]:
    """Return size, origin, spacing and direction of a grid, for SimpleITK."""
    direction = geometry.affine[:3, 2::-1] / np.array(geometry.spacing[::-1])
    return (
        [int(n) for n in geometry.shape[::-1]],
        geometry.affine[:3, 3].tolist(),
        [float(s) for s in geometry.spacing[::-1]],
        direction.ravel().tolist(),
        0.0,
        sitk.sitkUInt8,
    )
