"""``openmedlab finetune``: from folders to a model in the store, the same numbers as in Python."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from training_phantoms import labelled_files, tiny

torch = pytest.importorskip("torch")

from napari_openmedlab.cli.main import run  # noqa: E402
from napari_openmedlab.models.checkpoints.store import ModelStore  # noqa: E402
from napari_openmedlab.training.cases import check_cases  # noqa: E402
from napari_openmedlab.training.pairs import pair_folders  # noqa: E402
from napari_openmedlab.training.run import look, train  # noqa: E402
from napari_openmedlab.training.run_folder import STATE  # noqa: E402
from napari_openmedlab.training.state import read_state  # noqa: E402

#: What ``training_phantoms.tiny`` asks for, as options.
TINY = (
    "--name", "Ball and block", "--size", "2,4,4,4,4", "--patch", "16,32,32", "--mode", "0",
    "--iterations", "9", "--batch", "2", "--validate-every", "3", "--device", "cpu",
)  # fmt: skip


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENMEDLAB_MODELS", str(tmp_path / "models"))
    return ModelStore(tmp_path / "models")


def test_killed_on_the_command_line_and_gone_on_with_gives_the_numbers_of_python(
    tmp_path, store, capsys
):
    images, labels = labelled_files(tmp_path, 3)
    out = tmp_path / "run"
    command = [sys.executable, "-m", "napari_openmedlab.cli.main", "finetune"]
    with subprocess.Popen(
        [*command, str(images), str(labels), "--out", str(out), *TINY],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())},
    ) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("iteration 4 of 9"):
                process.kill()
                break
    text = "".join(said)
    assert "3 cases to learn from; classes: 1 ball, 2 block" in text
    assert "iteration 3: held-out Dice ball" in text
    assert look(out).iteration >= 3
    assert not look(out).finished

    assert run(["finetune", "--resume", str(out)]) == 0
    text = capsys.readouterr().out
    assert "Going on from iteration" in text
    assert "In the model store as 'ball-and-block'." in text
    assert store.get("ball-and-block").network == "fmunet"

    cases, left_out = pair_folders(images, labels)
    here = tmp_path / "python"
    done = train(check_cases(cases, left_out=left_out), tiny(iterations=9), here)
    first, second = (read_state(folder / STATE)[0] for folder in (out, here))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert look(out).losses == look(here).losses
    assert f"Held-out Dice: ball {done.dice['ball']:.4f}" in text

    # Asked once more, the model at hand is told; nothing is imported twice.
    assert run(["finetune", "--resume", str(out)]) == 0
    assert [record.name for record in store.records()] == ["ball-and-block"]


def test_a_plan_is_told_without_training(tmp_path, store, capsys):
    images, labels = labelled_files(tmp_path, 2)
    (images / "extra.nii.gz").write_bytes(b"")
    assert run(["finetune", str(images), str(labels), "--plan", *TINY]) == 0
    text = capsys.readouterr().out
    assert "Left out: extra: there is no label file of that name" in text
    assert "fmunet from scratch, patches of 16 x 32 x 32, batch 2, 9 iterations" in text
    assert "Held out: nothing" in text
    assert text.count("there is no honest figure") == 1
    assert not store.folder.exists()
    pair = (images / "case_1_0000.nii.gz", labels / "case_1_seg.nii.gz")
    assert run(["finetune", *map(str, pair), "--plan", *TINY]) == 0
    assert "1 case to learn from; classes: 1 ball, 2 block" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a folder of scans"),
        (["IMAGES", "LABELS"], "--out FOLDER"),
        (["IMAGES", "LABELS", "--out", "RUN/deep/er"], "does not exist"),
        (["IMAGES", "LABELS", "--classes", "liver"], "classes read '1=liver,5=spleen'"),
        (["IMAGES", "LABELS", "--out", "RUN", "--classes", "3=liver"], "no case to learn from"),
        (["IMAGES", "LABELS", "--patch", "32"], "3 numbers with commas"),
        (["IMAGES", "LABELS", "--network", "u-net"], "network is one of fmunet, pct-net"),
        (["IMAGES", "LABELS", "--init", "nothing.pt", "--out", "RUN"], "does not exist"),
        (["IMAGES", "LABELS", "--out", "RUN", "--hold-out", "5"], "can't be held out"),
        (["RUN", "LABELS"], "does not exist; check the name"),
        (["RUN"], "can't be read"),
        (["--resume", "RUN"], "no training run"),
        (["--finish", "RUN"], "no training run"),
    ],
)
def test_bad_input_is_told(arguments, words, tmp_path, store, capsys):
    images, labels = labelled_files(tmp_path, 1)
    places = {"IMAGES": str(images), "LABELS": str(labels)}
    given = [places.get(a, a.replace("RUN", str(tmp_path / "run"))) for a in arguments]
    assert run(["finetune", *given]) == 2
    told = capsys.readouterr().err
    plain = " ".join(told.replace("│", " ").split())
    assert words in plain or words.replace(" ", "") in plain.replace(" ", "")
