"""Pre-training without labels: goes on after a stop, ends in time, starts a fine-tuning."""

from __future__ import annotations

import json
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from training_phantoms import cases, scan, tiny

from napari_openmedlab.errors import (
    Cancelled,
    CheckpointError,
    EngineError,
    ReadError,
    SettingsError,
    WriteError,
)
from napari_openmedlab.geometry.boxes import Box
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.catalogue import load_engine
from napari_openmedlab.models.checkpoints.adopting import adopt
from napari_openmedlab.models.checkpoints.store import ModelStore
from napari_openmedlab.models.contract import Monitor
from napari_openmedlab.models.finetuned import read_card
from napari_openmedlab.training.events import Control, Note, Saved, Step, Validated
from napari_openmedlab.training.mixtures import HeldOutMixtures, Mixtures, fusion_for
from napari_openmedlab.training.prepared import Prepared
from napari_openmedlab.training.pretrain import (
    PLAN,
    plan_pretraining,
    pretrain,
    resume_pretraining,
    until,
)
from napari_openmedlab.training.run import look, resume, train
from napari_openmedlab.training.unlabelled import Unlabelled, check_scans, find_scans

PATCH = (16, 32, 32)


def scans(count=3):
    return check_scans([Unlabelled(f"scan {n}", scan(n)[0]) for n in range(count)])


def settings(**changes):
    given = {"name": "My start", "patch": PATCH, "resolution_mode": 1, "spacing": "keep"}
    return tiny(**given | {"iterations": 4, "validate_every": 2, "batch": 1} | changes)


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    return ModelStore()


def prepared(image):
    inside = tuple(slice(0, n) for n in image.shape)
    return Prepared("a", image, np.zeros(image.shape, np.uint8), inside, {})


# -- mixtures ----------------------------------------------------------------------------------


def test_a_mixture_depends_on_the_generator_alone():
    mixtures = Mixtures([prepared(scan(n)[0].array) for n in range(2)], PATCH)
    (image, levels), (again, same) = (mixtures.draw(np.random.default_rng(4)) for _ in range(2))
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(levels, same)
    assert image.shape == (1, *PATCH)
    assert image.dtype == np.float32
    assert levels.dtype == np.uint8
    assert set(np.unique(levels)) <= set(range(5))
    assert 0 <= image.min() <= image.max() <= 1


def test_parts_without_contrast_are_rejected_and_others_drawn():
    image = np.zeros((16, 40, 200), np.float32)
    image[:, :, 150:] = np.random.default_rng(1).normal(size=(16, 40, 50))
    mixtures = Mixtures([prepared(image)], PATCH)
    for seed in range(5):
        drawn, _ = mixtures.draw(np.random.default_rng(seed))
        assert np.isfinite(drawn).all()
    with pytest.raises(EngineError, match="no part with contrast"):
        Mixtures([prepared(np.zeros((16, 40, 40), np.float32))], PATCH).draw(
            np.random.default_rng(0)
        )


def test_blocks_are_the_published_part_of_the_patch():
    published = fusion_for((64, 128, 128))
    assert (published.smallest, published.largest) == ((5, 8, 8), (20, 32, 32))
    assert fusion_for((32, 64, 64)).largest == (10, 16, 16)


def test_telling_all_levels_apart_is_a_dice_of_1():
    import torch

    mixtures = Mixtures([prepared(scan(0)[0].array)], PATCH)
    truth = [mixtures.draw(np.random.default_rng((1, n, 1 << 21)))[1] for n in range(8)]
    answers = iter(truth)

    def knowing(images):
        wanted = torch.from_numpy(next(answers)).long()
        return torch.nn.functional.one_hot(wanted, 5).movedim(-1, 0)[None].float()

    from napari_openmedlab.models.device import Placement

    found = HeldOutMixtures(mixtures.cases, PATCH, 1)(
        knowing, Placement("cpu", "float32", 1), Monitor()
    )
    assert set(found.values()) == {1.0}
    assert len(found) == 4


# -- a run -------------------------------------------------------------------------------------


def test_a_run_makes_start_weights_that_a_fine_tuning_takes_over(tmp_path, store):
    events = []
    done = pretrain(scans(), settings(), tmp_path / "run", on_event=events.append)
    card = read_card(done.path)
    assert card.kind == "pretext"
    assert card.classes == ()
    assert card.provenance.cases == 2
    assert card.provenance.settings["method"] == "Volume Fusion"
    assert "scan" not in json.dumps(card.as_json())  # no names of scans leave with the file
    assert [e.iteration for e in events if isinstance(e, Step)] == [1, 2, 3, 4]
    assert [e.iteration for e in events if isinstance(e, Validated)] == [2, 4]
    assert not (tmp_path / "run" / "prepared").exists()
    record = adopt(done.path, card.title)
    assert record.name == "my-start"
    assert adopt(done.path, card.title).name == "my-start"  # the same file is there already
    with pytest.raises(EngineError, match="pre-trained only"):
        load_engine("mis-fm").segment(
            scan(0)[0],
            Box.whole(scan(0)[1].shape),
            {"checkpoint": "my-start"},
            Monitor(),
        )
    notes = []
    train(
        cases(2),
        tiny(init="my-start", iterations=1, patch=PATCH, resolution_mode=None),
        tmp_path / "tuned",
        on_event=notes.append,
    )
    assert any(
        isinstance(n, Note) and "138 of 146 tensors were taken over" in n.text for n in notes
    )


def test_a_stopped_run_goes_on_to_the_same_numbers(tmp_path):
    whole, parts = [], []
    straight = pretrain(scans(), settings(), tmp_path / "a", on_event=whole.append)
    monitor = Monitor()

    def stop(event):
        parts.append(event)
        if isinstance(event, Step) and event.iteration == 3:
            monitor.cancel()

    folder = tmp_path / "b"
    with pytest.raises(Cancelled, match="gone on with"):
        pretrain(scans(), settings(), folder, monitor=monitor, on_event=stop)
    with pytest.raises(WriteError, match="a run in"):
        pretrain(scans(), settings(), folder)
    with pytest.raises(ReadError, match="no training run"):
        resume(folder)  # fine-tuning has no business there
    assert look(folder) is None
    done = resume_pretraining(folder, on_event=parts.append)
    one, two = (
        {e.iteration: e.loss for e in events if isinstance(e, Step)} for events in (whole, parts)
    )
    assert one == two
    first, second = (p.read_bytes() for p in (straight.path, done.path))
    assert first[-4000:] == second[-4000:]  # weights; the header holds the time
    with pytest.raises(ReadError, match="finished already"):
        resume_pretraining(folder)


def test_a_run_ends_when_its_hours_are_over_and_a_pause_writes_the_state(tmp_path):
    control, events = Control(), []

    def hear(event):
        events.append(event)
        if isinstance(event, Step) and event.iteration == 1:
            control.pause()
        if isinstance(event, Saved) and event.iteration == 1:
            control.go_on()

    long = settings(iterations=1000, validate_every=500)
    done = pretrain(scans(1), long, tmp_path / "run", control=control,
                    on_event=until(0.6 / 3600, control, hear))  # fmt: skip
    steps = [e for e in events if isinstance(e, Step)]
    assert 1 <= len(steps) < 1000
    assert steps[-1].left < 1
    assert any(isinstance(e, Saved) and e.iteration == 1 for e in events)
    assert read_card(done.path).provenance.iterations == steps[-1].iteration
    assert any("Nothing" not in n and "last weights" in n for n in done.notes)


def test_damaged_and_foreign_runs_are_refused(tmp_path):
    with pytest.raises(ReadError, match="no pre-training"):
        resume_pretraining(tmp_path)
    (tmp_path / PLAN).write_text('{"format": 1, "plan": {"card": {}}}')
    with pytest.raises(CheckpointError, match="damaged"):
        resume_pretraining(tmp_path)
    (tmp_path / PLAN).write_text('{"format": 7}')
    with pytest.raises(ReadError, match="newer version"):
        resume_pretraining(tmp_path)


def test_the_published_schedule_is_the_default():
    plan = plan_pretraining(scans(3), replace(settings(), iterations=0, validate_every=0))
    assert plan.loop.iterations == 80_000
    assert plan.loop.validate_every == 1000
    assert plan.loop.patience == 20_000
    assert plan.variant["out_channels"] == 5
    assert len(plan.held_out) == 1


# -- scans -------------------------------------------------------------------------------------


def test_what_cant_be_used_is_left_out_with_a_reason(tmp_path):
    rng = np.random.default_rng(0)
    for name, array in {
        "good": rng.normal(size=(30, 30, 20)),
        "flat": np.ones((30, 30, 20)),
        "thin": rng.normal(size=(30, 30, 2)),
    }.items():
        nibabel.Nifti1Image(array.astype(np.float32), np.eye(4)).to_filename(
            tmp_path / f"{name}.nii.gz"
        )
    (tmp_path / "broken.nii.gz").write_bytes(b"no")
    (tmp_path / "notes.txt").write_text("not a scan")
    found = check_scans(find_scans([tmp_path]))
    assert [c.case.name for c in found.cases] == ["good"]
    reasons = dict(found.left_out)
    assert sorted(reasons) == ["broken", "flat", "thin"]
    assert "same value" in reasons["flat"]
    assert "at least 4" in reasons["thin"]
    (tmp_path / "good.nii.gz").unlink()
    with pytest.raises(SettingsError, match=r"no scan can be used. .*flat: every voxel"):
        check_scans(find_scans([tmp_path]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="no scan in the folders"):
        find_scans([tmp_path / "empty"])
    with pytest.raises(SettingsError, match="does not exist"):
        find_scans([tmp_path / "missing"])


def test_a_ct_is_cut_to_the_body():
    array = np.full((20, 30, 40), -1000, np.int16)
    array[2:18, 5:25, 6:30] = 40
    geometry = Geometry.from_spacing(array.shape, (2.0, 1.0, 1.0))
    volume, labels, _ = Unlabelled("ct", Volume(array, geometry, modality="CT")).read()
    assert volume.geometry.shape == (16, 20, 24)
    assert labels.shape == (16, 20, 24)
    np.testing.assert_allclose(
        volume.geometry.to_world((0, 0, 0)), geometry.to_world((2, 5, 6)), atol=1e-9
    )
