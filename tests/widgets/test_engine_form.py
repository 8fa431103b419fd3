"""The options form grows from the catalogue entry alone."""

from __future__ import annotations

import pytest
from qtpy.QtWidgets import QCheckBox, QComboBox, QDoubleSpinBox, QLineEdit, QSpinBox

from napari_openmedlab.models.catalogue import EngineSpec, Option, engines
from napari_openmedlab.widgets.engine_form import EngineForm, option_label

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
