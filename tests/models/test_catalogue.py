import subprocess
import sys
from types import SimpleNamespace

import pytest

from napari_openmedlab.errors import EngineError
from napari_openmedlab.models import catalogue
from napari_openmedlab.models.catalogue import EngineSpec, Option, engines, get_spec, load_engine


class Lacking:
    """An engine that forgot two methods."""

    def prepare(self, volume, monitor):
        return volume


def spec(**changes):
    fields = {
        "id": "mine",
        "title": "Mine",
        "entry": "test_catalogue:Lacking",
        "task": "promptable",
        "summary": "For tests.",
    }
    return EngineSpec(**{**fields, **changes})


@pytest.fixture
def register(monkeypatch):
    """Register things the way another package does, by entry points."""

    def put(*things):
        found = [SimpleNamespace(name=f"p{i}", load=lambda t=t: t) for i, t in enumerate(things)]
        monkeypatch.setattr(catalogue, "entry_points", lambda group: found)

    return put


def test_every_entry_is_complete_and_ids_are_unique():
    ids = [each.id for each in engines()]
    assert len(ids) == len(set(ids))
    assert "built-in" in ids
    for each in engines():
        assert each.title
        assert each.summary.endswith(".")
        module, _, name = each.entry.partition(":")
        assert module
        assert name
        assert each.task != "promptable" or each.prompts
        for option in each.options:
            assert option.check(option.default) == option.default
            assert option.description


def test_listing_engines_loads_none():
    code = (
        "import sys; from napari_openmedlab.models.catalogue import engines; engines();"
        "assert not {'torch', 'scipy', 'skimage', 'napari_openmedlab.models.engines.built_in'}"
        " & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_another_packages_engine_joins_the_catalogue(register):
    register(spec())
    assert get_spec("mine").title == "Mine"
    assert [e.id for e in engines("promptable")][-1] == "mine"
    assert "mine" not in [e.id for e in engines("automatic")]


def test_another_packages_faulty_entry_is_left_out_and_named(register, caplog, monkeypatch):
    ours = [each.id for each in engines()]
    register("not a spec", spec(id="built-in"), spec(id="fine"))
    assert [each.id for each in engines()] == [*ours, "fine"]
    assert "'p0' is left out, it is no EngineSpec" in caplog.text
    assert "'p1' is left out, its id 'built-in' is taken" in caplog.text

    def broken():
        raise ImportError("no module named gone")

    point = SimpleNamespace(name="broken", load=broken)
    monkeypatch.setattr(catalogue, "entry_points", lambda group: [point])
    assert [each.id for each in engines()] == ours
    assert "'broken' is left out, it can't be imported: no module named gone" in caplog.text


def test_an_unknown_id_lists_the_known_ones():
    with pytest.raises(EngineError, match="no engine 'magic'; there are: built-in"):
        load_engine("magic")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "'mine' says it is promptable but lacks predict, unload"),
        ({"entry": "no_such_module:X"}, "can't be loaded from no_such_module:X"),
        ({"entry": "test_catalogue:Gone"}, "can't be loaded from test_catalogue:Gone"),
        ({"requires": ("no_such_package",)}, "Mine needs no_such_package: pip install"),
    ],
)
def test_an_engine_that_cannot_be_loaded_says_why(register, changes, sentence):
    register(spec(**changes))
    with pytest.raises(EngineError, match=sentence):
        load_engine("mine")


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        (Option("a", 1.0, "", minimum=0.0, maximum=2.0), 3, "between 0.0 and 2.0, got 3"),
        (Option("a", 1, "", minimum=0), -1, "between 0 and None"),
        (Option("a", 1, ""), 1.5, "takes a int"),
        (Option("a", 1, ""), True, "takes a int"),
        (Option("a", True, ""), 1, "takes a bool"),
        (Option("a", "x", "", choices=("x", "y")), "z", "one of x, y"),
        (Option("a", "x", ""), 3, "takes a str"),
    ],
)
def test_wrong_option_values_are_refused(option, value, sentence):
    with pytest.raises(EngineError, match=sentence):
        option.check(value)


def test_options_are_filled_in_and_whole_numbers_become_floats():
    made = spec(options=(Option("a", 1.0, ""), Option("b", False, "")))
    checked = made.check_options({"a": 2})
    assert checked == {"a": 2.0, "b": False}
    assert isinstance(checked["a"], float)
    with pytest.raises(EngineError, match="Mine has no option c; it has a, b"):
        made.check_options({"c": 1})
