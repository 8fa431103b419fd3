#!/usr/bin/env python3
"""One file that does all set-up of a fresh clone: ``python3 run.py demo`` or ``... test``.

Standard library only. It makes ``.venv`` beside itself, installs the project into it (with uv
where that can be had, else with pip), and on Linux the system libraries a window needs where
it may. A stamp makes the second run start at once.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))
import system_packages  # noqa: E402  (found through the line above)

VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")  # scripts beside it
SUPPORTED = ((3, 11), (3, 13))
LIGHT = "gui"  # the demo runs the built-in engine: no torch
FULL = "gui,models,test"
LINT = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("lint-imports",),
    ("npe2", "validate", "napari-openmedlab"),
)


def main() -> int:
    """Run the command named on the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "command",
        choices=("demo", "test", "lint", "setup"),
        help="demo: segment a sample scan and show it; test: run the whole test suite; "
        "lint: style, types, import rules, manifest; setup: only prepare the environment",
    )
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="passed on (pytest arguments, say)")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    make_environment(LIGHT if arguments.command == "demo" else FULL)
    action = {"demo": demo, "test": test, "lint": lint, "setup": lambda _rest: 0}
    return action[arguments.command](arguments.rest)


def demo(rest: list[str]) -> int:
    """Segment the sample with the built-in engine; open napari only where there is a screen."""
    screen = system_packages.prepare_screen() if system_packages.has_real_screen() else None
    if screen is None or not screen.real:
        rest = [*rest, "--no-view"]
        print("No screen here: the result is written, napari is not opened.", flush=True)
    return call("-m", "napari_openmedlab.cli.main", "demo", *rest)


def test(rest: list[str]) -> int:
    """Run the test suite on all cores; windows open on a virtual screen where Xvfb can be had."""
    screen = system_packages.prepare_screen()
    environment = {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONDONTWRITEBYTECODE": "",  # the tests start many programs
    }
    if screen.real or screen.virtual:
        environment["REQUIRE_GUI"] = "1"  # a window test that skips is then a failure
    else:
        print(f"Window tests will be skipped: {screen.reason}", flush=True)
    # One process for each core (they take up to 4 GB each), a file's tests in one process: what
    # a file sets up, weights above all, is made once. pytest-xvfb gives each a screen of its own.
    workers = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile"]
    return call("-m", "pytest", *workers, *rest, environment=environment)


def lint(_rest: list[str]) -> int:
    """Run every static check; return the first failing exit code."""
    codes = []
    for tool, *arguments in LINT:
        print(f"== {tool} {' '.join(arguments)}", flush=True)
        script = PYTHON.with_name(tool + PYTHON.suffix)
        codes.append(subprocess.run([str(script), *arguments]).returncode)
    return next((code for code in codes if code), 0)


def call(*arguments: str, environment: dict[str, str] | None = None) -> int:
    """Run the environment's Python with these arguments and return its exit code."""
    command = [str(PYTHON), *arguments]
    return subprocess.run(command, env={**os.environ, **(environment or {})}).returncode


def make_environment(extras: str) -> None:
    """Create ``.venv`` and install the project with these extras, unless that was done before."""
    stamp = VENV / "installed.txt"
    have = stamp.read_text(encoding="utf-8") if PYTHON.exists() and stamp.exists() else ""
    if have in {fingerprint(extras), fingerprint(FULL)}:
        return
    if not PYTHON.exists():
        print("Making the environment in .venv (a few minutes the first time) ...", flush=True)
        subprocess.run([find_python(), "-m", "venv", str(VENV)], check=True)
    pip_install = [str(PYTHON), "-m", "pip", "install", "-q", "-c", "constraints.txt"]
    if extras == FULL:
        # By pip, which heeds the user's own settings: where those offer a CPU build of torch, it
        # is taken instead of the one for NVIDIA cards with its gigabytes of libraries.
        subprocess.run([*pip_install, "torch"], check=True)
    wants = ["-e", f".[{extras}]"]
    if not install_with_uv(["-c", "constraints.txt", *wants]):
        subprocess.run([*pip_install, *wants], check=True)
    stamp.write_text(fingerprint(extras), encoding="utf-8")


def install_with_uv(wants: list[str]) -> bool:
    """Install with uv, which is several times faster; return False where it can't be had."""
    get = [str(PYTHON), "-m", "pip", "install", "-q", "uv"]
    if os.environ.get("NO_UV") or subprocess.run(get).returncode:
        return False
    # Compiled once here, as pip does, and not by each program that the tests start.
    options = ["-q", "--compile-bytecode", "-p", str(PYTHON)]
    command = [str(PYTHON), "-m", "uv", "pip", "install", *options, *wants]
    if subprocess.run(command).returncode:
        print("uv could not install everything; trying again with pip ...", flush=True)
        return False
    return True


def fingerprint(extras: str) -> str:
    """Return a hash of all that decides what gets installed."""
    digest = hashlib.sha256(f"{ROOT} {extras}".encode())
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def find_python() -> str:
    """Return a supported Python: this one, else one on the PATH."""
    if SUPPORTED[0] <= sys.version_info[:2] <= SUPPORTED[1]:
        return sys.executable
    for minor in range(SUPPORTED[1][1], SUPPORTED[0][1] - 1, -1):
        if found := shutil.which(f"python3.{minor}"):
            return found
    low, high = ("{}.{}".format(*version) for version in SUPPORTED)
    raise SystemExit(
        f"Python {low} to {high} is needed; this is {sys.version.split()[0]} and no other was "
        "found on the PATH. Install one and run this again."
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"Set-up failed at: {' '.join(map(str, error.cmd))}")
    except KeyboardInterrupt:
        sys.exit(130)
