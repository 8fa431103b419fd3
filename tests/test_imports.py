"""Start-up stays light, and the import contracts hold."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import napari_openmedlab


def modules_after(statement: str) -> set[str]:
    """Return the top-level modules a fresh interpreter has loaded after a statement."""
    code = f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(run.stdout.splitlines()[-1])}


def test_importing_the_package_loads_nothing_heavy():
    loaded = modules_after("import napari_openmedlab")
    heavy = {"numpy", "scipy", "skimage", "SimpleITK", "pydicom", "nibabel", "torch", "napari"}
    assert not loaded & heavy


def test_session_and_catalogue_load_neither_torch_nor_qt():
    loaded = modules_after(
        "import napari_openmedlab.session.session, napari_openmedlab.models.catalogue as c; "
        "c.engines()"
    )
    assert not loaded & {"torch", "monai", "napari", "qtpy", "magicgui", "PyQt6", "PySide6"}


@pytest.mark.parametrize("name", napari_openmedlab.__all__)
def test_each_public_name_can_be_had(name):
    assert getattr(napari_openmedlab, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = napari_openmedlab.nonsense
