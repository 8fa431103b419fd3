"""What a Linux machine must have for napari's window, and how to get it. Standard library only.

Qt aborts the whole process when one of its X11 libraries is missing (and names the wrong one),
so they are looked for one by one before Qt is ever imported.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

LIBRARIES = {  # soname: Debian 12 / Ubuntu package
    "libGL.so.1": "libgl1",
    "libEGL.so.1": "libegl1",
    "libOpenGL.so.0": "libopengl0",
    "libGLX_mesa.so.0": "libglx-mesa0",
    "libxcb-cursor.so.0": "libxcb-cursor0",
    "libxcb-icccm.so.4": "libxcb-icccm4",
    "libxcb-image.so.0": "libxcb-image0",
    "libxcb-keysyms.so.1": "libxcb-keysyms1",
    "libxcb-randr.so.0": "libxcb-randr0",
    "libxcb-render-util.so.0": "libxcb-render-util0",
    "libxcb-shape.so.0": "libxcb-shape0",
    "libxcb-xkb.so.1": "libxcb-xkb1",
    "libxkbcommon.so.0": "libxkbcommon0",
    "libxkbcommon-x11.so.0": "libxkbcommon-x11-0",
    "libdbus-1.so.3": "libdbus-1-3",
    "libfontconfig.so.1": "libfontconfig1",
    "libglib-2.0.so.0": "libglib2.0-0",
}
VIRTUAL_SCREEN = ("xvfb", "xauth", "libgl1-mesa-dri", "fonts-dejavu-core")


@dataclass(frozen=True)
class Screen:
    """Whether a window can be opened here.

    Attributes
    ----------
    real : bool
        A screen is attached (or the system always has one: macOS, Windows).
    virtual : bool
        ``xvfb-run`` can make one.
    reason : str
        Why neither is there, as a sentence; empty otherwise.
    """

    real: bool
    virtual: bool
    reason: str = ""


def has_real_screen() -> bool:
    """Return whether a window would appear on a screen."""
    if not sys.platform.startswith("linux"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def missing_packages(*, virtual_screen: bool) -> list[str]:
    """Return the Debian packages of everything that could not be found."""
    missing = [package for name, package in LIBRARIES.items() if not _loads(name)]
    if virtual_screen and not (shutil.which("xvfb-run") and shutil.which("xauth")):
        missing += VIRTUAL_SCREEN
    return missing


def prepare_screen() -> Screen:
    """Install what is missing where that is allowed, and say what kind of screen there is."""
    real = has_real_screen()
    if not sys.platform.startswith("linux"):
        return Screen(real=True, virtual=False)
    missing = missing_packages(virtual_screen=not real)
    if missing:
        missing = _install(missing, virtual_screen=not real)
    if missing:
        line = "sudo apt-get install -y --no-install-recommends " + " ".join(missing)
        return Screen(False, False, f"no window can be opened here; to change that run: {line}")
    return Screen(real=real, virtual=not real)


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _install(packages: list[str], *, virtual_screen: bool) -> list[str]:
    """Try apt-get as root or with a password-less sudo; return what is missing afterwards."""
    prefix = _root_prefix()
    if prefix is None or os.environ.get("NO_APT") or not shutil.which("apt-get"):
        return packages
    print("Installing system packages:", " ".join(packages), flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    for command in (["apt-get", "update", "-qq"], install):
        subprocess.run([*prefix, *command], env=environment, stdout=subprocess.DEVNULL)
    return missing_packages(virtual_screen=virtual_screen)


def _root_prefix() -> list[str] | None:
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return []
    asks_nothing = ["sudo", "-n", "true"]
    if shutil.which("sudo") and not subprocess.run(asks_nothing, capture_output=True).returncode:
        return ["sudo", "-n", "--preserve-env=DEBIAN_FRONTEND"]
    return None
