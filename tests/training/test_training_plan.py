"""Settings become a plan that suits the cases and the machine, and says what it chose."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_phantoms import TINY, case, cases, scan, tiny

pytest.importorskip("torch")

from napari_openmedlab.errors import CheckpointError, SettingsError
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models import networks
from napari_openmedlab.models.device import Device
from napari_openmedlab.training.cases import check_cases
from napari_openmedlab.training.fitting import Fit, choose_loop, choose_patch
from napari_openmedlab.training.need import fitted
from napari_openmedlab.training.plan import make_plan, plan_from_json
from napari_openmedlab.training.settings import (
    LoopSettings,
    TrainSettings,
    settings_from_json,
)

GIB = 2**30
CARD = Device("cuda:0", "a card", 70 * GIB, 80 * GIB, ("bfloat16", "float16"), True)
LAPTOP = replace(CARD, free=7 * GIB, total=8 * GIB)
CPU = Device("cpu", "CPU", 8 * GIB, 16 * GIB, ("bfloat16",))


def test_one_of_three_is_held_out_and_of_two_none_said_plainly():
    plan = make_plan(cases(3), tiny())
    assert (len(plan.train), len(plan.held_out)) == (2, 1)
    assert not any("honest" in note for note in plan.notes)
    plan = make_plan(cases(2), tiny())
    assert (len(plan.train), plan.held_out) == (2, ())
    assert "Nothing is held out of 2 cases: there is no honest figure" in " ".join(plan.notes)


def test_held_out_by_number_and_by_name():
    found = cases(4)
    assert len(make_plan(found, tiny(held_out=2)).held_out) == 2
    assert make_plan(found, tiny(held_out=("case 2",))).held_out == ("case 2",)
    assert make_plan(found, tiny(held_out=0)).held_out == ()
    for wanted, words in ((4, "can't be held out"), (("x",), "no case x")):
        with pytest.raises(SettingsError, match=words):
            make_plan(found, tiny(held_out=wanted))
    with pytest.raises(SettingsError, match="all 4 cases are held out"):
        make_plan(found, tiny(held_out=tuple(f"case {n}" for n in range(4))))


def test_a_class_is_never_only_in_held_out_cases():
    found = check_cases([case(0), case(1, labels=ball_only_of(1)), case(2, labels=ball_only_of(2))])
    assert found.notes[0] == "Only one case has block: it can't be learnt and measured."
    for seed in range(5):
        assert "case 0" in make_plan(found, tiny(seed=seed)).train
    fewer = check_cases([case(0), case(1, labels=ball_only_of(1))])
    odd = make_plan(fewer, tiny(held_out=1))
    assert odd.held_out == ("case 1",)
    both = check_cases([case(0, labels=ball_only_of(0)), case(1, labels=block_only_of(1))])
    assert make_plan(both, tiny(held_out=1)).notes[-2].startswith("0 instead of 1 cases are held")
    with pytest.raises(SettingsError, match="block: only held-out cases have it"):
        make_plan(found, tiny(held_out=("case 0",)))


def block_only_of(number):
    labels = scan(number)[1]
    return np.where(labels == 2, 2, 0).astype(np.uint8)


def ball_only_of(number):
    labels = scan(number)[1]
    return np.where(labels == 1, 1, 0).astype(np.uint8)


def test_spacing_is_the_median_unless_a_voxel_size_is_unknown():
    volume, _ = scan(1)
    fine = Volume(volume.array, Geometry.from_spacing(volume.array.shape, (3.0, 2.0, 2.0)))
    found = check_cases([case(0), case(1, image=fine), case(2)])
    plan = make_plan(found, tiny())
    assert plan.preprocessing.spacing == (1.5, 1.0, 1.0)
    assert any(note.startswith("1 of 3 scans are resampled") for note in plan.notes)
    assert make_plan(found, tiny(spacing="keep")).preprocessing.spacing is None
    pixels = Geometry.from_spacing(volume.array.shape, (1, 1, 1), unit="pixel")
    found = check_cases([case(0), case(1, image=Volume(volume.array, pixels))])
    assert make_plan(found, tiny()).preprocessing.spacing is None
    with pytest.raises(SettingsError, match="no known voxel size"):
        make_plan(found, tiny(spacing=(1.0, 1.0, 1.0)))


def test_ct_is_known_by_its_values_or_its_word():
    assert make_plan(cases(2), tiny()).preprocessing.intensity.rule == "z-score"
    volume, _ = scan(0)
    low = Volume(volume.array - 1000, volume.geometry)
    found = check_cases([case(0, image=low)])
    chosen = make_plan(found, tiny(window=(-160.0, 240.0))).preprocessing.intensity
    assert (chosen.rule, chosen.low, chosen.high) == ("clip", -160.0, 240.0)
    assert make_plan(found, tiny(intensity="z-score")).preprocessing.intensity.rule == "z-score"


def test_left_and_right_are_not_mirrored():
    names = {1: "kidney left", 2: "Kidney_Right"}
    found = check_cases([case(n, names=names) for n in range(2)])
    plan = make_plan(found, tiny())
    assert plan.flips == "y"
    assert any("kidney left" in note for note in plan.notes)
    assert make_plan(cases(2), tiny()).flips == "yx"
    assert make_plan(cases(2), tiny(flips="none")).flips == ""


def test_batch_iterations_and_rates_by_device_and_cases():
    def loop(device, count, started=False, **changes):
        return choose_loop(
            TrainSettings(**changes),
            Fit((100, 300, 300), (2, 1, 1), device, count, 3),
            started,
        )

    assert (loop(CARD, 30).batch, loop(CARD, 30).accumulation) == (2, 1)
    assert [loop(CPU, n).iterations for n in (1, 2, 5, 40)] == [1000, 2000, 3000, 6000]
    assert loop(CARD, 5, True).trunk_rate == pytest.approx(3e-4)
    assert loop(CARD, 50, True).trunk_rate == loop(CARD, 5).trunk_rate == 1e-3
    assert loop(CARD, 50).validate_every == 250


def test_a_batch_is_computed_in_parts_where_memory_is_short():
    variant = {"in_channels": 1, "out_channels": 3, "resolution_mode": 0, "channels": [32] * 5}

    def parts(device, **changes):
        loop = LoopSettings(10, **{"batch": 4, "precision": "float32"} | changes)
        return fitted(loop, "fmunet", variant, (64, 128, 128), device)

    whole, need, warning = parts(CARD)
    assert (whole.accumulation, warning) == (1, "")
    assert 5 * GIB < need < 30 * GIB
    less, smaller, _ = parts(LAPTOP)
    assert less.accumulation > 1
    assert smaller < need
    assert parts(CARD, accumulation=2)[0].accumulation == 2
    tight, _, warning = parts(replace(CARD, free=GIB))
    assert tight.accumulation == 4
    assert "will not fit into the memory of cuda:0" in warning


@functools.cache
def network_of(name, variant):
    return networks.build(name, device="meta", **json.loads(variant))


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.integers(2, 400)] * 3),
    st.sampled_from([0, 1, 2]),
    st.sampled_from(["fmunet", "pct-net"]),
    st.sampled_from([CARD, LAPTOP, CPU]),
    st.booleans(),
)
def test_every_patch_chosen_is_one_the_network_takes(shape, mode, network, device, started):
    variant = {"in_channels": 1, "out_channels": 3, "resolution_mode": mode}
    variant["channels"] = [2, 2, 4, 8, 16]
    fit = Fit(shape, (1.0, 1.0, 1.0), device, 3, 3)
    patch, variant = choose_patch(TrainSettings(network=network), variant, started, fit)
    built = network_of(network, json.dumps(variant))
    units = (16 >> mode, 16, 16)
    assert all(edge % unit == 0 for edge, unit in zip(patch, units, strict=True))
    least = getattr(built, "smallest", units)
    assert all(edge >= low for edge, low in zip(patch, least, strict=True))
    assert patch != units  # one voxel at the bottom has no spread to divide by


def test_a_patch_that_does_not_suit_is_refused():
    with pytest.raises(SettingsError, match="30 x 32 x 32 does not suit fmunet: its edges are mul"):
        make_plan(cases(2), tiny(patch=(30, 32, 32)))


def test_start_weights_decide_channels_and_mode(stand_ins):
    record = stand_ins.add("fmunet", channels=list(TINY), resolution_mode=1)
    plan = make_plan(cases(2), tiny(init=record.name, resolution_mode=None, size="auto"))
    assert plan.variant["channels"] == list(TINY)
    assert (plan.variant["resolution_mode"], plan.variant["out_channels"]) == (1, 3)
    assert (plan.init, plan.init_sha256) == (record.name, record.sha256)
    plan = make_plan(cases(2), tiny(init=record.name, resolution_mode=0))
    assert any("start fresh" in note for note in plan.notes)


def test_start_weights_of_another_kind_are_refused(stand_ins):
    record = stand_ins.add("fmunet", channels=list(TINY))
    with pytest.raises(CheckpointError, match="weights of fmunet, not of pct-net"):
        make_plan(cases(2), tiny(init=record.name, network="pct-net", patch=None))
    two = stand_ins.add("fmunet", channels=list(TINY), in_channels=2)
    with pytest.raises(CheckpointError, match="images of 2 channels"):
        make_plan(cases(2), tiny(init=two.name))
    with pytest.raises(CheckpointError):
        make_plan(cases(2), tiny(init="no-such-model"))


def test_plans_and_settings_survive_json():
    plan = make_plan(cases(3), tiny())
    assert plan_from_json(json.loads(json.dumps(plan.as_json()))) == plan
    chosen = tiny(spacing=(1.0, 2.0, 3.0), held_out=("case 1",))
    assert settings_from_json(json.loads(json.dumps(chosen.as_json()))) == chosen
    with pytest.raises(SettingsError, match="no setting colour"):
        settings_from_json({"colour": 1})
    with pytest.raises(CheckpointError):
        plan_from_json({"card": 3})


@pytest.mark.parametrize(
    "changes",
    [
        {"name": " "},
        {"network": "u-net"},
        {"size": "huge"},
        {"size": (1, 2)},
        {"resolution_mode": 3},
        {"intensity": "pet"},
        {"iterations": -1},
        {"learning_rate": -1.0},
        {"foreground": 1.5},
        {"contrast": 0.9},
        {"flips": "abc"},
        {"window": (1.0, 1.0)},
        {"patch": (32, 32)},
        {"spacing": "fine"},
        {"spacing": (0.0, 1.0, 1.0)},
        {"spacing": (float("nan"), 1.0, 1.0)},
        {"window": (float("nan"), 5.0)},
        {"window": (0.0, float("inf"))},
        {"learning_rate": float("nan")},
        {"held_out": -1},
    ],
)
def test_settings_that_cannot_be_are_refused(changes):
    with pytest.raises(SettingsError):
        TrainSettings(**changes)


def test_loop_settings_that_cannot_be_are_refused():
    for changes in ({"iterations": 0}, {"batch": 1, "accumulation": 2}, {"learning_rate": 0.0}):
        with pytest.raises(SettingsError):
            LoopSettings(**{"iterations": 5} | changes)
