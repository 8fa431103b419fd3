"""The command as a process of its own: quick to start, clean to end."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from napari_openmedlab import __version__
from napari_openmedlab.cli.progress import working
from napari_openmedlab.errors import Cancelled


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "napari_openmedlab.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, encoding="utf-8")


def test_help_loads_nothing_heavy_and_names_every_command():
    code = (
        "import sys, json\n"
        "from napari_openmedlab.cli.main import run\n"
        "code = run(['--help'])\n"
        "print('\\n' + json.dumps([code, sorted({n.split('.')[0] for n in sys.modules})]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    exit_code, modules = json.loads(done.stdout.splitlines()[-1])
    assert exit_code == 0
    heavy = {"scipy", "skimage", "napari", "SimpleITK", "nibabel", "pydicom", "torch", "PIL"}
    assert not heavy & set(modules)
    for name in ("segment", "info", "convert", "evaluate", "replay", "engines", "demo"):
        assert name in done.stdout


def test_a_real_process_ends_with_the_right_code_and_no_traceback(tmp_path):
    done = process("info", str(tmp_path / "nothing.nii"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "does not exist" in done.stderr
    assert "Traceback" not in done.stderr
    traced = process("info", str(tmp_path / "nothing.nii"), "--debug")
    assert traced.returncode != 0
    assert "Traceback" in traced.stderr


def test_version(openmedlab):
    assert openmedlab("--version").out.strip() == f"openmedlab {__version__}"


@pytest.mark.parametrize("arguments", [["segment"], ["nonsense"], ["info", "--nonsense"]])
def test_wrong_usage_ends_with_2(openmedlab, arguments):
    assert openmedlab(*arguments).code == 2


def test_ctrl_c_cancels_the_monitor_and_says_what_was_stopped():
    with pytest.raises(Cancelled, match=r"stopped while reading$"), working("reading") as monitor:
        raise KeyboardInterrupt
    assert monitor.cancelled
    with (
        pytest.raises(Cancelled, match=r"while reading; all is kept$"),
        working("reading", "all is kept"),
    ):
        raise KeyboardInterrupt
