"""Code shown in the documentation runs, and pictures it shows exist."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import numpy as np
import pytest

from napari_openmedlab.errors import PromptError
from napari_openmedlab.geometry.prompts import PromptSet
from napari_openmedlab.geometry.volume import Geometry, Volume
from napari_openmedlab.models.contract import Monitor, Request, check_engine

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_example_engine_keeps_the_contract():
    text = (ROOT / "docs" / "adding_an_engine.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    names: dict[str, object] = {"__name__": "flood"}
    exec(compile(code, "adding_an_engine.md", "exec"), names)  # the page's own code
    engine = names["Flood"]()
    check_engine(engine, "promptable", "flood")

    array = np.zeros((12, 20, 20), np.float32)
    array[3:8, 5:12, 6:14] = 100
    volume = Volume(array, Geometry.from_spacing(array.shape, (2.0, 1.0, 1.0), unit="mm"))
    prompts = PromptSet().with_click(volume.geometry.to_world((5, 8, 9)))
    answer = engine.predict(engine.prepare(volume, Monitor()), Request(prompts), Monitor())
    assert np.array_equal(answer.patch.to_full(array.shape), array > 50)
    with pytest.raises(PromptError, match="needs a positive click"):
        engine.predict(volume, Request(PromptSet()), Monitor())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_with_a_prompt_give_what_they_show(page):
    text = re.sub(r"^```.*$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    examples = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(examples).failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http:", "https:", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
