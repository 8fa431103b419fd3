#!/usr/bin/env python3
"""Make the sample data in ``napari_openmedlab/sample_data``: ``python tools/make_samples.py``.

Nothing here comes from a patient or an animal: organs are implicit shapes, axons are random
walks, textures are seeded noise. The same NumPy, SciPy and tifffile give the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import tifffile
from phantoms import light_sheet, torso
from phantoms.canvas import Array, Bounds, Canvas, Grid, smooth_noise
from scipy import ndimage

from napari_openmedlab.session.objects import distinct_colour

TARGET = Path(__file__).resolve().parents[1] / "napari_openmedlab" / "sample_data"

CT_EXTENT_MM: Bounds = ((-188.8, 188.8), (-128.0, 128.0), (0.0, 240.0))
CT_SPACING_XYZ = (1.6, 1.6, 4.0)
CT_TONES = {  # Hounsfield units, portal venous phase
    "air": -1000, "skin": 20, "fat": -102, "muscle": 58, "bone": 430, "marrow": 175, "disc": 75,
    "canal": 15, "cord": 35, "lung": -855, "mottle": 1.6, "vessel": -30, "myocardium": 105,
    "blood": 148, "cortex": 182, "medulla": 138, "vein": 138, "artery": 156, "calcium": 620,
    "liver": 108, "portal": 146, "lesion": 48, "wall": 66, "bile": 8, "spleen": 124,
    "content": 28, "gas": -930, "pancreas": 88, "stool": 42, "chyme": 38,
}  # fmt: skip

MR_EXTENT_MM: Bounds = ((-189.0, 189.0), (-126.0, 126.0), (15.0, 205.0))
MR_SPACING_XYZ = (2.1, 2.1, 5.0)
MR_TONES = {  # arbitrary units, as in a fast T2-weighted sequence: fluid bright, vessels dark
    "air": 4, "skin": 150, "fat": 640, "muscle": 120, "bone": 60, "marrow": 330, "disc": 330,
    "canal": 820, "cord": 300, "lung": 25, "mottle": 0.2, "vessel": 50, "myocardium": 170,
    "blood": 60, "cortex": 330, "medulla": 470, "vein": 70, "artery": 45, "calcium": 20,
    "liver": 215, "portal": 90, "lesion": 520, "wall": 160, "bile": 900, "spleen": 340,
    "content": 640, "gas": 8, "pancreas": 250, "stool": 200, "chyme": 380,
}  # fmt: skip

AXON_SHAPE, AXON_SPACING_UM = (56, 176, 176), (4.0, 2.0, 2.0)

CLICKED = {"liver": 1, "spleen": 2, "kidney right": 3, "kidney left": 4, "gallbladder": 7}
"""Objects of the demonstration: their extreme points are stored as a user would click them."""


def main() -> None:
    """Write all samples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=TARGET, help="folder to write to")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    image, labels = ct()
    affine = affine_ras(CT_EXTENT_MM, CT_SPACING_XYZ)
    write_nifti(out / "ct_torso.nii.gz", image, affine)
    write_nifti(out / "ct_torso_labels.nii.gz", labels, affine)
    write_sidecar(out / "ct_torso_labels.nii.gz", torso.NAMES)
    write_json(out / "ct_torso_prompts.json", clicks(labels, affine))
    image, labels = mr()
    affine = affine_ras(MR_EXTENT_MM, MR_SPACING_XYZ)
    write_nifti(out / "mr_abdomen.nii.gz", image, affine)
    write_nifti(out / "mr_abdomen_labels.nii.gz", labels, affine)
    write_sidecar(out / "mr_abdomen_labels.nii.gz", torso.NAMES)
    image, labels = light_sheet.draw(AXON_SHAPE, AXON_SPACING_UM, seed=31)
    write_tiff(out / "light_sheet_axons.tif", np.clip(image, 0, 65535).astype(np.uint16))
    write_tiff(out / "light_sheet_axons_labels.tif", labels)
    write_sidecar(out / "light_sheet_axons_labels.tif", light_sheet.NAMES)


def ct() -> tuple[Array, Array]:
    """Return the CT-like image (int16 HU) and labels, axes (z, y, x) growing to S, P, L."""
    canvas = Canvas(Grid.of(CT_EXTENT_MM, CT_SPACING_XYZ), CT_TONES["air"], 11, wobble_mm=2.8)
    torso.draw(canvas, CT_TONES, seed=12)
    image, labels = canvas.thick()
    rng = np.random.default_rng(13)
    tissue = smooth_noise(rng, image.shape, CT_SPACING_XYZ[::-1], 12.0, 4.0)
    image += np.where(image > -300, tissue, 0.0)
    # A reconstruction kernel leaves noise that is correlated within a slice, not across slices.
    noise = ndimage.gaussian_filter(rng.standard_normal(image.shape), (0, 0.55, 0.55))
    image += 13.0 * noise / noise.std()
    # Steps of 4 HU lie well below the noise and halve the file.
    return np.clip(np.rint(image / 4) * 4, -1000, 3000).astype(np.int16), labels


def mr() -> tuple[Array, Array]:
    """Return the MR-like image (int16) and labels, axes (z, y, x) growing to S, P, L."""
    canvas = Canvas(Grid.of(MR_EXTENT_MM, MR_SPACING_XYZ), MR_TONES["air"], 21, wobble_mm=3.2)
    torso.draw(canvas, MR_TONES, seed=22)
    image, labels = canvas.thick()
    rng = np.random.default_rng(23)
    steps = MR_SPACING_XYZ[::-1]
    image *= 1 + smooth_noise(rng, image.shape, steps, 12.0, 0.05)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in image.shape), indexing="ij")
    # Surface coils: bright near the skin, dark in the middle, stronger at one side.
    bias = 0.62 + 0.30 * (x * x + y * y) + 0.16 * x - 0.10 * z
    bias = bias + smooth_noise(rng, image.shape, steps, 120.0, 0.06)
    real, imaginary = rng.normal(0, 11, (2, *image.shape))
    magnitude = np.hypot(image * bias + real, imaginary)  # Rician, as magnitude images are
    return np.clip(np.rint(magnitude / 4) * 4, 0, 4000).astype(np.int16), labels


def affine_ras(extent_mm: Bounds, spacing_xyz: tuple[float, float, float]) -> Array:
    """Return the NIfTI affine of an array (x, y, z) whose axes grow to L, P, S."""
    first = [low + step / 2 for (low, _), step in zip(extent_mm, spacing_xyz, strict=True)]
    affine = np.diag([-spacing_xyz[0], -spacing_xyz[1], spacing_xyz[2], 1.0])
    affine[:3, 3] = -first[0], -first[1], first[2]
    return affine


def clicks(labels: Array, affine: Array) -> dict[str, object]:
    """Return the prompts file: six extreme points each, off by a click's inaccuracy."""
    rng = np.random.default_rng(41)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    objects = []
    for name, value in CLICKED.items():
        index_xyz = np.argwhere(labels == value)[:, ::-1].astype(float)
        points = []
        for axis in range(3):
            for end in (index_xyz[:, axis].min(), index_xyz[:, axis].max()):
                there = index_xyz[index_xyz[:, axis] == end]
                nearest = there[np.argmin(((there - there.mean(axis=0)) ** 2).sum(axis=1))]
                # People click within about a pixel in the plane and on the right slice.
                nearest = nearest + np.array([*rng.uniform(-0.8, 0.8, 2), 0.0])
                nearest = np.clip(nearest, 0, np.array(labels.shape[::-1]) - 1)
                points.append([round(float(v), 1) for v in (lps @ [*nearest, 1.0])[:3]])
        objects.append({"name": name, "extreme_points": points})
    return {"coordinate_system": "LPS", "objects": objects}


def write_sidecar(labels_file: Path, names: dict[int, str]) -> None:
    """Write names and colours of the label values as our exports keep them beside a mask."""
    rows = [
        {"value": value, "name": name, "colour": list(distinct_colour(value))}
        for value, name in names.items()
    ]
    about = {"format": "napari-openmedlab labels", "version": 1, "file": labels_file.name}
    stem = labels_file.name.split(".")[0]
    write_json(labels_file.with_name(f"{stem}.json"), {**about, "objects": rows})


def write_json(path: Path, content: dict) -> None:
    """Write JSON that reads well in an editor."""
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8", newline="\n")


def write_nifti(path: Path, array: Array, affine: Array) -> None:
    """Write an array (z, y, x) as NIfTI (x, y, z); no time stamp in the gzip header."""
    image = nibabel.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(image.to_bytes(), 9, mtime=0))


def write_tiff(path: Path, array: Array) -> None:
    """Write a compressed OME-TIFF with its voxel size in um."""
    z, y, x = AXON_SPACING_UM
    sizes = {"PhysicalSizeX": x, "PhysicalSizeY": y, "PhysicalSizeZ": z}
    units = {f"PhysicalSize{axis}Unit": "µm" for axis in "XYZ"}
    about = {"axes": "ZYX", "UUID": "00000000-0000-0000-0000-000000000000", **sizes, **units}
    tifffile.imwrite(path, array, ome=True, compression="zlib", predictor=True, metadata=about)


if __name__ == "__main__":
    main()
