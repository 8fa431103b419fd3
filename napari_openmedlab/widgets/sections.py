"""The parts of the Segment panel: inputs and buttons with their tooltips, no behaviour.

Buttons never take the keyboard focus, so that the canvas keeps it and the keys of the tools go
on working after a click on the panel.
"""

from __future__ import annotations

from collections.abc import Iterable

from qtpy.QtCore import Qt, Signal
from qtpy.QtWidgets import (
    QButtonGroup,
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QGridLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSizePolicy,
    QVBoxLayout,
    QWidget,
)

from napari_openmedlab.session.objects import OverlapRule, SegmentObject
from napari_openmedlab.widgets.engine_form import EngineForm
from napari_openmedlab.widgets.object_table import ObjectTable
from napari_openmedlab.widgets.tools import SIGN_KEY, TOOLS, Tool

__all__ = [
    "EngineSection",
    "FileSection",
    "ImageSection",
    "ObjectSection",
    "PromptSection",
    "RunSection",
    "StatusLine",
    "button",
    "combo",
    "scrolled",
    "wrapped_label",
]

_STATUS_STYLE = (
    "QLabel {{ border: none; border-left: 4px solid {colour}; padding: 4px 6px; "
    "background: rgba(127, 127, 127, 40); }}"
)
_STATUS_COLOURS = {
    "info": "#60a5fa",
    "busy": "#fbbf24",
    "done": "#22c55e",
    "unsure": "#f59e0b",
    "error": "#ef4444",
}


def combo(tooltip: str) -> QComboBox:
    """Return a drop-down list that never widens its panel, however long its entries are."""
    made = QComboBox()
    made.setToolTip(tooltip)
    made.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
    return made


def button(text: str, tooltip: str, *, checkable: bool = False) -> QPushButton:
    """Return a push button that leaves the keyboard focus where it is."""
    made = QPushButton(text)
    made.setToolTip(tooltip)
    made.setCheckable(checkable)
    made.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    made.setMinimumWidth(10)
    return made


def wrapped_label(text: str = "") -> QLabel:
    """Return a label that wraps and whose text can be copied."""
    made = QLabel(text)
    made.setWordWrap(True)
    made.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
    made.setSizePolicy(_as_tall_as_its_text())
    return made


def scrolled(parts: Iterable[QWidget]) -> QScrollArea:
    """Return an area that stacks these and scrolls up and down where the room is short."""
    inner = QWidget()
    layout = QVBoxLayout(inner)
    layout.setContentsMargins(4, 4, 4, 4)
    layout.setSpacing(6)
    for part in parts:
        layout.addWidget(part)
    layout.addStretch()
    area = QScrollArea()
    area.setWidgetResizable(True)
    area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
    area.setWidget(inner)
    return area


def _as_tall_as_its_text() -> QSizePolicy:
    policy = QSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Minimum)
    policy.setHeightForWidth(True)
    return policy


class StatusLine(QLabel):
    """One sentence with a coloured edge: what happened, or what is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.setWordWrap(True)
        self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.setSizePolicy(_as_tall_as_its_text())
        self.setToolTip("What happened last")
        self.setMinimumHeight(2 * self.fontMetrics().height() + 10)
        self.severity = "info"
        self.say("Choose an image to begin.")

    def say(self, text: str, severity: str = "info") -> None:
        """Show a sentence; ``severity`` is info, busy, done, unsure or error."""
        self.severity = severity
        self.setStyleSheet(_STATUS_STYLE.format(colour=_STATUS_COLOURS[severity]))
        self.setText(text)


class ImageSection(QGroupBox):
    """Image, notes about it, and the way it is looked at."""

    def __init__(self) -> None:
        super().__init__("Image")
        self.choice = QComboBox()
        self.choice.setToolTip("The image layer to segment")
        self.choice.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.note = wrapped_label()
        self.note.setToolTip("What has to be known about this image")
        self.note.hide()
        self.views = {
            "axial": button("Axial", "Slices across the body, seen from the feet"),
            "coronal": button("Coronal", "Slices from front to back, seen from the front"),
            "sagittal": button("Sagittal", "Slices from right to left, seen from the left"),
            "3d": button("3D", "All of it in 3D, to look at; prompts are set on slices"),
        }
        self.letters = QCheckBox("Letters")
        self.letters.setToolTip(
            "Show R, L, A, P, S, I (right, left, front, back, head, feet) at the edges of the view"
        )
        self.letters.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        views = QHBoxLayout()
        views.setSpacing(3)
        for made in self.views.values():
            views.addWidget(made)
        views.addWidget(self.letters)
        layout = QVBoxLayout(self)
        layout.addWidget(self.choice)
        layout.addWidget(self.note)
        layout.addLayout(views)


class EngineSection(QGroupBox):
    """Engine, its own options, and how its masks meet other objects."""

    def __init__(self) -> None:
        super().__init__("Engine")
        self.choice = QComboBox()
        self.choice.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.more = button("Options", "Show the engine's options", checkable=True)
        self.form = EngineForm()
        self.form.hide()
        self.overlap = QComboBox()
        self.overlap.addItem("Keep other objects", OverlapRule.KEEP)
        self.overlap.addItem("Overwrite unlocked objects", OverlapRule.OVERWRITE)
        self.overlap.setToolTip(
            "Who keeps a voxel that two objects want. Locked objects always keep theirs."
        )
        self.overlap.setSizePolicy(QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Fixed)
        self.avoid = QCheckBox("Avoid neighbours")
        self.avoid.setToolTip("Tell the engine that voxels of other objects can't belong to this")
        self.avoid.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.more.toggled.connect(self.form.setVisible)
        top = QHBoxLayout()
        top.addWidget(self.choice, 1)
        top.addWidget(self.more)
        layout = QVBoxLayout(self)
        layout.addLayout(top)
        layout.addWidget(self.form)
        others = QHBoxLayout()
        others.addWidget(self.overlap, 1)
        others.addWidget(self.avoid)
        layout.addLayout(others)


class PromptSection(QGroupBox):
    """The prompt tools and what the next click does."""

    tool_clicked = Signal(object)
    """A :class:`Tool`, or ``None`` when the tool that was on was clicked again."""

    def __init__(self) -> None:
        super().__init__("Prompts")
        self.tools: dict[Tool, QPushButton] = {}
        grid = QGridLayout()
        grid.setSpacing(3)
        for k, (tool, info) in enumerate(TOOLS.items()):
            made = button(f"{info.title}  [{info.key}]", info.tooltip, checkable=True)
            made.clicked.connect(lambda on, t=tool: self.tool_clicked.emit(t if on else None))
            self.tools[tool] = made
            grid.addWidget(made, k // 2, k % 2)
        self.inside = button(f"+ Inside  [{SIGN_KEY}]", "Clicks and strokes add", checkable=True)
        self.outside = button(
            f"− Outside  [{SIGN_KEY}]", "Clicks and strokes take away", checkable=True
        )
        self.signs = QButtonGroup(self)
        self.signs.addButton(self.inside)
        self.signs.addButton(self.outside)
        self.inside.setChecked(True)
        grid.addWidget(self.inside, 2, 0)
        grid.addWidget(self.outside, 2, 1)
        self.brush = QDoubleSpinBox()
        self.brush.setToolTip("Diameter of the scribble's brush")
        self.brush.setPrefix("Brush ")
        self.brush.setDecimals(1)
        self.mask = button(
            "Mask from labels…", "Take a labels layer's selected label as the prompt"
        )
        self.from_layer = button(
            "From layer…", "One object for each point or rectangle of a layer, all in one run"
        )
        grid.addWidget(self.brush, 3, 0, 1, 2)
        grid.addWidget(self.mask, 4, 0)
        grid.addWidget(self.from_layer, 4, 1)
        self.guide = wrapped_label()
        self.guide.setToolTip("What to do next")
        self.guide.setMinimumHeight(2 * self.guide.fontMetrics().height() + 6)
        self.count = wrapped_label()
        self.count.setToolTip("The prompts of the active object")
        self.clear = button("Clear", "Take all prompts of the active object away; undo brings back")
        bottom = QHBoxLayout()
        bottom.addWidget(self.count, 1)
        bottom.addWidget(self.clear)
        layout = QVBoxLayout(self)
        layout.addLayout(grid)
        layout.addWidget(self.guide)
        layout.addLayout(bottom)

    def show_tool(self, tool: Tool | None, positive: bool) -> None:
        """Press the button of the tool that is on, and of the sign."""
        for each, made in self.tools.items():
            made.setChecked(each is tool)
        (self.inside if positive else self.outside).setChecked(True)
        signed = tool in (None, Tool.CLICK, Tool.SCRIBBLE)
        self.inside.setEnabled(signed)
        self.outside.setEnabled(signed)
        self.brush.setEnabled(tool in (None, Tool.SCRIBBLE))


class RunSection(QWidget):
    """Run, cancel, undo, redo and the status line."""

    def __init__(self) -> None:
        super().__init__()
        self.auto = QCheckBox("Run after each prompt")
        self.auto.setToolTip("Off: prompts wait until you press Run")
        self.auto.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.propagate = button(
            "Propagate", "Carry the object on from this slice to its neighbours, through the scan"
        )
        self.propagate.hide()
        self.run = button("Run  [Enter]", "Ask the engine now, with the prompts there are")
        self.cancel = button("Cancel", "Stop the engine at its next step; nothing is lost")
        self.undo = button("Undo", "Take the last step back, prompts and mask together (Ctrl+Z)")
        self.redo = button("Redo", "Do it again (Ctrl+Shift+Z)")
        self.bar = QProgressBar()
        self.bar.setTextVisible(False)
        self.bar.setMaximumHeight(6)
        self.bar.setToolTip("Progress of the engine")
        policy = self.bar.sizePolicy()
        policy.setRetainSizeWhenHidden(True)
        self.bar.setSizePolicy(policy)
        self.bar.hide()
        self.status = StatusLine()
        self.models = button(
            "Get models…", "Open the Models panel: download models or import weight files"
        )
        self.models.hide()
        top = QHBoxLayout()
        top.addWidget(self.auto, 1)
        top.addWidget(self.propagate, 1)
        row = QHBoxLayout()
        row.setSpacing(3)
        for made in (self.run, self.cancel, self.undo, self.redo):
            row.addWidget(made)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(top)
        layout.addLayout(row)
        layout.addWidget(self.bar)
        layout.addWidget(self.status)
        layout.addWidget(self.models)


class ObjectSection(QGroupBox):
    """The objects of the session."""

    def __init__(self) -> None:
        super().__init__("Objects")
        self.table = ObjectTable()
        self.new = button("New", "Add an object and make it the active one")
        self.accept = button("Accept + next  [N]", "Lock the active object and begin the next one")
        self.jump = button("Go to", "Show the slice in the middle of the active object")
        self.delete = button("Delete", "Remove the active object and its mask; undo brings it back")
        row = QHBoxLayout()
        row.setSpacing(3)
        row.addWidget(self.accept, 2)
        for made in (self.new, self.jump, self.delete):
            row.addWidget(made, 1)
        layout = QVBoxLayout(self)
        layout.addLayout(row)
        layout.addWidget(self.table)

    def show_active(self, active: SegmentObject | None) -> None:
        """Enable the buttons that make sense for the active object."""
        self.accept.setEnabled(active is not None and active.voxels > 0)
        self.delete.setEnabled(active is not None and not active.locked)
        self.jump.setEnabled(active is not None)


class FileSection(QGroupBox):
    """Sessions and prompts as files."""

    def __init__(self) -> None:
        super().__init__("Files")
        self.save = button("Save session…", "Objects, prompts, masks and all steps in one file")
        self.open = button("Open session…", "Go on with a saved session of this image")
        self.load_prompts = button(
            "Load prompts…", "Prompts from a JSON file, or markups of 3D Slicer (.mrk.json)"
        )
        self.save_prompts = button("Save prompts…", "The prompts of all objects as a JSON file")
        grid = QGridLayout(self)
        grid.setSpacing(3)
        for k, made in enumerate((self.save, self.open, self.load_prompts, self.save_prompts)):
            grid.addWidget(made, k // 2, k % 2)
