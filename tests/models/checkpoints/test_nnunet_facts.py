"""A fine-tuned file brings its class names, grid and intensities along, from its plan."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch", reason="reading weights needs the extra 'models'")

import torch
from golden_networks import load_filled

from napari_openmedlab.errors import EngineError
from napari_openmedlab.models import networks
from napari_openmedlab.models.checkpoints.nnunet_plans import find_plan
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.class_names import class_names
from napari_openmedlab.models.engines.stu_net.plan import Intensity, plan_of

STRIDES = [[2, 2, 2]] * 4 + [[1, 2, 2]]
LABELS = {"background": 0, "tumour": 2, "liver": 1}
PROPERTIES = {"percentile_00_5": -57, "percentile_99_5": 164.0, "mean": 99.5, "std": 37.1}


def v2_plan(**changed):
    base = {
        "pool_op_kernel_sizes": [[1, 1, 1], *STRIDES],
        "spacing": [3.0, 0.8, 0.8],
        "patch_size": [64, 128, 128],
        "normalization_schemes": ["CTNormalization"],
    }
    return {
        "configurations": {"3d_base": base, "3d_fullres": {"inherits_from": "3d_base"}},
        "foreground_intensity_properties_per_channel": {"0": PROPERTIES},
        "transpose_forward": [0, 1, 2],
        **changed,
    }


def put(folder, plans, labels=LABELS):
    (folder / "plans.json").write_text(json.dumps(plans))
    dataset = {"channel_names": {"0": "CT"}, "labels": labels}
    (folder / "dataset.json").write_text(json.dumps(dataset))


def test_an_imported_v2_file_keeps_what_its_plan_says(tmp_path):
    filled = load_filled(networks.build("stu-net-s", device="meta", out_channels=3))
    weights = {"network_weights": filled.state_dict(), "current_epoch": 3}
    torch.save(weights, tmp_path / "checkpoint_final.pth")
    put(tmp_path, v2_plan())
    store = ModelStore(tmp_path / "models")
    store.import_file(tmp_path / "checkpoint_final.pth", "mine")
    (record,) = ModelStore(tmp_path / "models").records()
    assert class_names(record) == (("background", "liver", "tumour"), ())
    plan = plan_of(record)
    assert plan.form == "v2"
    assert plan.spacing == (3.0, 0.8, 0.8)
    assert plan.patch == (64, 128, 128)
    assert plan.intensity == Intensity(-57.0, 164.0, 99.5, 37.1)
    assert plan.notes == ()
    assert plan_of(record, '["a", "b"]').names == ("background", "a", "b")


def test_other_forms_of_plans(tmp_path):
    put(tmp_path, v2_plan(), {**LABELS, "both": [1, 2]})  # regions have no single number
    assert "names" not in find_plan(tmp_path / "x.pth").facts
    plans = v2_plan()
    plans["configurations"]["3d_base"]["normalization_schemes"] = ["ZScoreNormalization"]
    put(tmp_path, plans)
    assert "intensity" not in find_plan(tmp_path / "x.pth").facts
    put(tmp_path, v2_plan(foreground_intensity_properties_per_channel={"0": {"mean": "x"}}))
    assert "intensity" not in find_plan(tmp_path / "x.pth").facts


def test_a_v1_plan_says_how_values_are_brought_into_range(tmp_path):
    from checkpoint_factory import pickled

    stage = {
        "pool_op_kernel_sizes": STRIDES,
        "current_spacing": [2.0, 1.0, 1.0],
        "patch_size": [96, 96, 96],
    }
    properties = {**PROPERTIES, "sd": 40.0}
    plans = {
        "plans_per_stage": {0: stage},
        "num_classes": 2,
        "num_modalities": 1,
        "normalization_schemes": {0: "CT"},
        "dataset_properties": {"intensityproperties": {0: properties}},
        "transpose_forward": [0, 1, 2],
    }
    (tmp_path / "plans.pkl").write_bytes(pickled(plans))
    facts = find_plan(tmp_path / "x.model").facts
    assert facts["form"] == "v1"
    assert facts["spacing"] == [2.0, 1.0, 1.0]
    assert facts["intensity"]["deviation"] == 40.0
    plans["normalization_schemes"] = {0: "nonCT"}
    (tmp_path / "plans.pkl").write_bytes(pickled(plans))
    assert "intensity" not in find_plan(tmp_path / "x.model").facts


def test_swapped_axes_are_refused_in_words(tmp_path):
    from napari_openmedlab.models.checkpoints.records import Record

    put(tmp_path, v2_plan(transpose_forward=[1, 0, 2]))
    facts = find_plan(tmp_path / "x.pth").facts
    record = Record("mine", "stu-net-s", {"in_channels": 1, "out_channels": 3}, facts=facts)
    with pytest.raises(EngineError, match="swapped axes"):
        plan_of(record)
