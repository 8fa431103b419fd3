"""A small scan with two objects, its prompts and reference, and a way to call the command."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest

from napari_openmedlab.cli.main import run

AFFINE_RAS = np.array(
    [[-1.5, 0.0, 0.0, 30.0], [0.0, -1.5, 0.0, 25.0], [0.0, 0.0, 3.0, -40.0], [0, 0, 0, 1.0]]
)
SHAPE_XYZ = (44, 40, 20)


@dataclass(frozen=True)
class Case:
    """Files of one made-up scan: a large object on the patient's right, a small one left."""

    folder: Path
    image: Path
    reference: Path
    prompts: Path


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def write_nifti(path: Path, array: np.ndarray) -> Path:
    nibabel.Nifti1Image(array, AFFINE_RAS).to_filename(path)
    return path


def reference_labels() -> np.ndarray:
    i, j, k = np.indices(SHAPE_XYZ)
    labels = np.zeros(SHAPE_XYZ, dtype=np.uint8)
    # i grows to the patient's left here, so small i lies on the right.
    labels[((i - 12) / 8) ** 2 + ((j - 20) / 10) ** 2 + ((k - 10) / 5) ** 2 <= 1] = 1
    labels[((i - 33) / 6) ** 2 + ((j - 16) / 6) ** 2 + ((k - 8) / 4) ** 2 <= 1] = 2
    return labels


def extremes_ras(mask: np.ndarray) -> list[list[float]]:
    index = np.argwhere(mask)
    ends = [index[f(index[:, axis])] for axis in range(3) for f in (np.argmin, np.argmax)]
    return [list(map(float, AFFINE_RAS[:3, :3] @ e + AFFINE_RAS[:3, 3])) for e in ends]


@pytest.fixture
def case(tmp_path) -> Case:
    labels = reference_labels()
    rng = np.random.default_rng(5)
    image = np.choose(labels, [0, 110, 180]) + rng.normal(0, 8, SHAPE_XYZ)
    objects = [
        {"name": "liver", "extreme_points": extremes_ras(labels == 1)},
        {"name": "spleen", "extreme_points": extremes_ras(labels == 2)},
    ]
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({"coordinate_system": "RAS", "objects": objects}))
    return Case(
        tmp_path,
        write_nifti(tmp_path / "scan.nii.gz", np.rint(image).astype(np.int16)),
        write_nifti(tmp_path / "reference.nii.gz", labels),
        prompts,
    )


@pytest.fixture
def openmedlab(capsys, monkeypatch):
    """Return a function that runs the command line in this process, errors turned to exit codes."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return call


@pytest.fixture
def segmented(case, openmedlab):
    """Return the case after `openmedlab segment`, with mask and session beside it."""
    done = openmedlab(
        "segment", case.image, "--prompts", case.prompts, "-o", case.folder / "mask.nii.gz",
        "--session", case.folder / "work.omlsession",
    )  # fmt: skip
    assert done.code == 0, done.err
    return case, done
