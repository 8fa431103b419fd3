"""The options form grows from the catalogue entry alone."""

from __future__ import annotations

import subprocess
import sys

import pytest
from qtpy.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QLineEdit, QSpinBox

from napari_openmedlab.geometry.prompts import BoxPrompt, PromptSet
from napari_openmedlab.models.catalogue import EngineSpec, Option, engines
from napari_openmedlab.models.checkpoints.records import Record
from napari_openmedlab.widgets.engine_form import EngineForm, option_label
from napari_openmedlab.widgets.live_options import LiveOptions, is_live
from napari_openmedlab.widgets.local_models import newest_first

pytestmark = pytest.mark.gui

SPEC = EngineSpec(
    id="x",
    title="X",
    entry="x:X",
    task="promptable",
    summary="s",
    options=(
        Option("smooth", True, "Smooth the edge."),
        Option("rounds", 3, "Rounds.", minimum=1, maximum=9),
        Option("margin_mm", 5.0, "Margin in mm.", minimum=0.0, maximum=40.0),
        Option("mode", "fast", "Mode.", choices=("fast", "fine")),
        Option("label", "", "Free text."),
    ),
)


def test_every_kind_of_option_gets_its_input_with_limits_and_tooltip(qtbot):
    form = EngineForm()
    qtbot.addWidget(form)
    form.show_spec(SPEC, {"rounds": 5})
    kinds = [QCheckBox, QSpinBox, QDoubleSpinBox, QComboBox, QLineEdit]
    for option, kind in zip(SPEC.options, kinds, strict=True):
        field = form.input_of(option.name)
        assert type(field) is kind
        assert field.toolTip() == option.description
    assert form.input_of("rounds").maximum() == 9
    assert form.values() == {"rounds": 5}


def test_change_sends_values_that_differ_and_filling_sends_none(qtbot):
    form = EngineForm()
    qtbot.addWidget(form)
    sent = []
    form.changed.connect(sent.append)
    form.show_spec(SPEC, {})
    assert sent == []
    form.input_of("smooth").setChecked(False)
    form.input_of("margin_mm").setValue(12.5)
    form.input_of("mode").setCurrentText("fine")
    assert sent[-1] == {"smooth": False, "margin_mm": 12.5, "mode": "fine"}
    assert SPEC.check_options(sent[-1])["margin_mm"] == 12.5
    form.show_spec(SPEC, {})
    assert form.values() == {}


@pytest.mark.parametrize("spec", engines(), ids=lambda spec: spec.id)
def test_defaults_of_the_whole_catalogue_survive_the_form(qtbot, spec):
    form = EngineForm()
    qtbot.addWidget(form)
    form.show_spec(spec, {})
    assert form.values() == {}
    spec.check_options(form.values())


def test_labels_are_words():
    assert option_label("max_size_mm") == "Max size (mm)"
    assert option_label("ct") == "CT"


# -- options with a source -----------------------------------------------------------------

SOURCES = EngineSpec(
    id="y",
    title="Y",
    entry="y:Y",
    task="promptable",
    summary="s",
    networks=("net",),
    options=(
        Option("checkpoint", "", "Model.", source="models"),
        Option("device", "auto", "Device.", source="devices"),
        Option("axis", "auto", "Axis.", choices=("auto", "0", "1", "2"), source="view"),
        Option("low", 0.0, "Low.", source="contrast"),
        Option("high", 1.0, "High.", source="contrast"),
        Option("window", "", "Window.", source="contrast"),
    ),
)


def record(name, network="net", imported="2026-01-01 10:00"):
    return Record(name, network, size=5_000_000, imported=imported)


@pytest.fixture
def form(qtbot):
    made = EngineForm()
    qtbot.addWidget(made)
    made.show_spec(SOURCES, {})
    return made


def test_models_are_offered_newest_first_and_the_choice_outlives_a_new_list(form):
    sent = []
    form.changed.connect(sent.append)
    field = form.input_of("checkpoint")
    assert field.choice.currentText() == "None on this computer yet"
    records = (record("old"), record("other", "another"), record("new", imported="2026-02-01"))
    form.show_models(newest_first(records, SOURCES.networks))
    texts = [field.choice.itemText(row) for row in range(field.choice.count())]
    assert texts == ["Newest (new)", "new, 5 MB", "old, 5 MB"]
    assert form.values() == {}
    field.choice.setCurrentIndex(2)
    field.choice.activated.emit(2)
    assert sent == [{"checkpoint": "old"}]
    form.show_models((record("new"),))
    assert field.choice.currentText() == "old (not on this computer)"
    assert form.values() == {"checkpoint": "old"}


def test_get_models_button_asks_for_the_panel(form, qtbot):
    with qtbot.waitSignal(form.models_asked):
        form.input_of("checkpoint").more.click()


def test_devices_are_auto_and_cpu_until_more_is_known(form):
    field = form.input_of("device")
    assert [field.itemData(row) for row in range(field.count())] == ["auto", "cpu"]
    form.show_devices([("auto", "auto"), ("cuda:0", "cuda:0 (H100)"), ("cpu", "cpu (16 cores)")])
    assert field.value() == "auto"
    form.show_spec(SPEC, {})
    form.show_spec(SOURCES, {"device": "cuda:0"})
    assert form.input_of("device").currentText() == "cuda:0 (H100)"
    form.show_spec(SOURCES, {"device": "mps"})
    assert form.values() == {"device": "mps"}


def test_options_that_follow_the_view_are_not_asked_for(form):
    assert set(form._inputs) == {"checkpoint", "device", "window"}
    assert is_live(SOURCES.options[2])
    assert not is_live(SOURCES.options[5])


class FakeImage:
    contrast_limits = (-160.0, 240.0)


@pytest.mark.parametrize(
    ("noted", "prompts", "axis"),
    [
        (None, PromptSet().with_click((1, 2, 3)), "2"),
        (None, PromptSet().with_box(BoxPrompt((0, 0, 0), (1, 1, 1))), "auto"),
        (1, PromptSet().with_box(BoxPrompt((0, 0, 0), (1, 1, 1))), "1"),
    ],
)
def test_axis_is_the_gestures_else_the_engines_else_the_views(noted, prompts, axis):
    live = LiveOptions(FakeImage(), lambda: 2)
    if noted is not None:
        live.note_axis(7, noted)
    values = live.fill(SOURCES, {"window": "shown"}, 7, prompts)
    assert values["axis"] == axis
    assert (values["low"], values["high"], values["window"]) == (-160.0, 240.0, "-160 240")


def test_form_without_torch_offers_models_and_devices():
    code = (
        "import sys; from napari_openmedlab.widgets.engine_form import EngineForm; "
        "import napari_openmedlab.widgets.segment; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
