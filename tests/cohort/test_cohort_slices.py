"""Engines that work by slice, in a cohort: whole boxes and MedLSAM's sub-patches."""

from __future__ import annotations

import csv
from dataclasses import replace

import grey_network
import numpy as np
import pytest
from small_torsos import torso

from napari_openmedlab.cohort import signatures
from napari_openmedlab.cohort.library import Library
from napari_openmedlab.cohort.results import Results
from napari_openmedlab.cohort.run import run_cohort
from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.io.api import read, read_labels
from napari_openmedlab.models.catalogue import get_spec

pytest.importorskip("torch", reason="slice engines need the extra 'models'")
if get_spec("sam-med2d").missing():
    pytest.skip("slice engines need the extra 'models'", allow_module_level=True)


@pytest.fixture
def sliced(plan, library_folder, monkeypatch):
    """One scan, SAM-Med2D's engine around a network that takes what is bright in the box."""
    grey_network.install(monkeypatch, 256)
    monkeypatch.setattr(signatures, "checkpoint_of", lambda engine, options: engine)
    settings = replace(
        plan.settings, engine="sam-med2d", margin_mm=3.0, structures=("liver",), slab_interval=2
    )
    templates = Library.open(library_folder).templates(("liver",), slab_interval=2)
    scans = plan.folder / "patient11"
    return replace(plan, settings=settings, templates=templates, folder=scans)


def test_sub_patches_give_each_slice_its_own_rectangle(sliced):
    whole = replace(
        sliced, settings=replace(sliced.settings, slab_interval=0), out=sliced.out / "whole"
    )
    whole = replace(whole, templates=Library.open(whole.library).templates(("liver",)))
    masks = {}
    for plan in (sliced, whole):
        assert run_cohort(plan).done == 1
        record = Results(plan.out).record("ct")
        row = record.structure("liver")
        assert row.status == "segmented"
        assert row.checkpoint == "0" * 64
        scan = read(plan.folder / "ct.nii.gz")
        labels, _ = read_labels(plan.out / "cases" / "ct" / "masks.nii.gz", like=scan)
        masks[len(row.parts) > 0] = (np.asarray(labels.array) > 0, row)
    mask, row = masks[True]
    truth = torso(11)[1] == 1
    assert len(row.parts) >= 3
    inside = np.zeros_like(mask)
    for part in row.parts:
        inside[part.grow((2, 2, 2)).clip(mask.shape).slices] = True
    assert not (mask & ~inside).any()
    assert (mask & truth).sum() > 0.6 * truth.sum()
    assert masks[False][1].parts == ()
    assert (masks[False][0] & truth).sum() >= (mask & truth).sum()


def test_the_table_names_the_weights(sliced):
    run_cohort(sliced)
    with (sliced.out / "cohort.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["engine"], row["checkpoint"]) == ("sam-med2d", "0" * 64)


def test_missing_weights_end_the_run_before_any_scan_is_read(plan, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "none"))
    settings = replace(plan.settings, engine="sam-med2d")
    with pytest.raises(CheckpointError, match="has no weights here yet"):
        run_cohort(replace(plan, settings=settings))
    assert not (plan.out / "cases").exists()
