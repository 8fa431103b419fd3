"""The structures that STU-Net names: groups of them, left and right, colours. Pure data."""

from __future__ import annotations

import colorsys
import difflib
import fnmatch
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from napari_openmedlab.errors import EngineError

__all__ = [
    "ABDOMEN_ATLAS",
    "CT_ORG",
    "GROUPS",
    "MIDLINE",
    "TOTAL_SEGMENTATOR",
    "Group",
    "choose",
    "colour_of",
    "group_of",
    "groups",
    "partner",
    "side_of",
    "title_of",
]

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Group:
    """Some structures under one name, or groups of them.

    Attributes
    ----------
    id : str
        For the command line.
    title : str
        For people.
    members : tuple of str
        Names that stand directly in it.
    parts : tuple of Group
    """

    id: str
    title: str
    members: tuple[str, ...] = ()
    parts: tuple[Group, ...] = ()

    def names(self) -> tuple[str, ...]:
        """Return all names in it and in its parts."""
        return (*self.members, *(name for part in self.parts for name in part.names()))


def _both(*stems: str) -> tuple[str, ...]:
    return tuple(f"{stem}_{side}" for stem in stems for side in ("left", "right"))


def _vertebrae(letter: str, count: int) -> tuple[str, ...]:
    return tuple(f"vertebrae_{letter}{number}" for number in range(1, count + 1))


def _ribs(side: str) -> tuple[str, ...]:
    return tuple(f"rib_{side}_{number}" for number in range(1, 13))


GROUPS: tuple[Group, ...] = (
    Group(
        "abdomen",
        "Abdomen",
        ("spleen",),
        (
            Group(
                "digestive",
                "Digestive organs",
                ("liver", "gallbladder", "pancreas", "stomach", "duodenum", "small_bowel", "colon"),
            ),
            Group(
                "urinary",
                "Kidneys, adrenal glands, bladder",
                (*_both("kidney", "adrenal_gland"), "urinary_bladder"),
            ),
        ),
    ),
    Group(
        "chest",
        "Chest",
        ("esophagus",),
        (
            Group(
                "lungs",
                "Lungs and trachea",
                (
                    *_both("lung_upper_lobe", "lung_lower_lobe"),
                    "lung_middle_lobe_right",
                    "trachea",
                ),
            ),
            Group(
                "heart",
                "Heart",
                ("heart_myocardium", *_both("heart_atrium", "heart_ventricle")),
            ),
        ),
    ),
    Group(
        "vessels",
        "Vessels",
        (
            "aorta",
            "inferior_vena_cava",
            "portal_vein_and_splenic_vein",
            "pulmonary_artery",
            *_both("iliac_artery", "iliac_vena"),
        ),
    ),
    Group(
        "spine",
        "Spine",
        ("sacrum",),
        (
            Group("cervical", "Cervical vertebrae", _vertebrae("C", 7)),
            Group("thoracic", "Thoracic vertebrae", _vertebrae("T", 12)),
            Group("lumbar", "Lumbar vertebrae", _vertebrae("L", 5)),
        ),
    ),
    Group(
        "ribs",
        "Ribs",
        (),
        (
            Group("ribs-left", "Left ribs", _ribs("left")),
            Group("ribs-right", "Right ribs", _ribs("right")),
        ),
    ),
    Group("limbs", "Girdles and limbs", _both("clavicula", "scapula", "humerus", "hip", "femur")),
    Group(
        "muscles",
        "Muscles",
        _both("autochthon", "iliopsoas", "gluteus_maximus", "gluteus_medius", "gluteus_minimus"),
    ),
    Group("head", "Head", ("brain", "face")),
)
"""Every one of the 104 structures stands in exactly one place."""

TOTAL_SEGMENTATOR: tuple[str, ...] = (
    "background",
    *sorted(name for group in GROUPS for name in group.names()),
)
"""Class names by number. The published weights count them in alphabetical order, so rib 10 and
T10 come right after 1."""

ABDOMEN_ATLAS: tuple[str, ...] = (
    "background", "aorta", "gallbladder", "inferior_vena_cava", "kidney_left", "liver", "pancreas",
    "kidney_right", "spleen", "stomach",
)  # fmt: skip
"""Class names of the weights trained on AbdomenAtlasMini, in the words used above."""

CT_ORG: tuple[str, ...] = ("background", "liver", "urinary_bladder", "lungs", "kidneys", "bone",
                           "brain")  # fmt: skip
"""Class names of the weights fine-tuned on CT-ORG."""

MIDLINE: tuple[str, ...] = ("sacrum", *(n for n in TOTAL_SEGMENTATOR if n.startswith("vertebrae")))
"""What lies in the middle of the body."""

# Chambers of the heart are named by their function: both lie left of the middle.
_NOT_SIDED = ("heart_",)


def groups() -> Iterator[Group]:
    """Yield all groups, each before its parts."""
    stack = list(reversed(GROUPS))
    while stack:
        group = stack.pop()
        yield group
        stack += reversed(group.parts)


def group_of(name: str) -> str:
    """Return the id of the innermost group a structure stands in; ``""`` for others' names."""
    return next((group.id for group in groups() if name in group.members), "")


def choose(wanted: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the structures that a user asks for, in the order of the classes.

    Parameters
    ----------
    wanted : str
        Names, groups and patterns (``vertebrae_L*``) with commas between; empty: all. Case,
        blanks and ``-`` for ``_`` don't matter. Or a JSON list of names as they stand.
    names : sequence of str
        Class names; the first one is the background.

    Raises
    ------
    EngineError
        For a word that is none of them; the text gives those that come near.
    """
    if wanted.lstrip().startswith("["):
        return _listed(wanted, names)
    known = {_plain(name): name for name in names[1:]}
    grouped = {
        _plain(group.id): {_plain(name) for name in group.names()} & set(known)
        for group in groups()
    }
    found: set[str] = set()
    for word in filter(None, (_plain(part) for part in wanted.split(","))):
        matches = grouped.get(word) or set(fnmatch.filter(known, word))
        if not matches:
            raise EngineError(_unknown(word, [*known, *(g for g, m in grouped.items() if m)]))
        found |= matches
    if not found:
        return tuple(names[1:])
    return tuple(name for name in names[1:] if _plain(name) in found)


def _listed(wanted: str, names: Sequence[str]) -> tuple[str, ...]:
    """Return the structures of a JSON list of names."""
    try:
        listed = set(json.loads(wanted))
    except (ValueError, TypeError) as error:
        raise EngineError(f"the list of structures is no JSON list of names: {wanted}") from error
    unknown = listed - set(names[1:])
    if unknown:
        raise EngineError(_unknown(str(min(unknown, key=str)), names[1:]))
    return tuple(name for name in names[1:] if name in listed) or tuple(names[1:])


def _plain(text: str) -> str:
    return "_".join(text.strip().lower().replace("-", "_").split())


def _unknown(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=4, cutoff=0.5)
    within = [name for name in known if word in name][:4]
    hint = f"; did you mean {', '.join(dict.fromkeys([*near, *within]))}?" if near or within else ""
    return f"this model has no structure or group '{word}'{hint}"


def title_of(name: str) -> str:
    """Return a name for people.

    Examples
    --------
    >>> title_of("adrenal_gland_left")
    'adrenal gland, left'
    >>> title_of("rib_left_4")
    'rib 4, left'
    """
    words = name.split("_")
    side = next((word for word in words if word in ("left", "right")), "")
    rest = " ".join(word for word in words if word != side)
    if name.startswith("heart_") or not side:
        return name.replace("_", " ")
    return f"{rest}, {side}"


def side_of(name: str) -> str:
    """Return the side of the body a structure lies on, ``"left"`` or ``"right"``, else ``""``."""
    if name.startswith(_NOT_SIDED):
        return ""
    return next((word for word in name.split("_") if word in ("left", "right")), "")


def partner(name: str, names: Sequence[str]) -> str:
    """Return the same structure of the other side, ``""`` if the model has none."""
    side = side_of(name)
    if not side:
        return ""
    other = {"left": "right", "right": "left"}[side]
    found = "_".join(other if word == side else word for word in name.split("_"))
    return found if found in names else ""


# Hue range of each group's members, saturation, and value of the first and the second of two.
_PALETTES: dict[str, tuple[float, float, float, float]] = {
    "abdomen": (0.78, 0.80, 0.55, 0.80),
    "digestive": (0.02, 0.16, 0.65, 0.90),
    "urinary": (0.28, 0.40, 0.60, 0.85),
    "chest": (0.12, 0.14, 0.45, 0.75),
    "lungs": (0.50, 0.64, 0.25, 0.98),
    "heart": (0.95, 1.02, 0.75, 0.90),
    "vessels": (0.58, 1.00, 0.90, 0.95),
    "spine": (0.14, 0.15, 0.40, 0.85),
    "cervical": (0.10, 0.20, 0.45, 0.95),
    "thoracic": (0.42, 0.56, 0.45, 0.95),
    "lumbar": (0.70, 0.80, 0.45, 0.95),
    "ribs-left": (0.08, 0.22, 0.35, 0.98),
    "ribs-right": (0.08, 0.22, 0.35, 0.82),
    "limbs": (0.03, 0.75, 0.40, 0.98),
    "muscles": (0.88, 1.12, 0.50, 0.78),
    "head": (0.86, 0.92, 0.40, 0.90),
}


def colour_of(name: str) -> Colour:
    """Return the colour of a structure, red, green and blue in [0, 1]; always the same.

    Groups have ranges of hue; the right one of two is darker. Names that no group has get a
    colour that follows from the name.
    """
    group = next((each for each in groups() if name in each.members), None)
    if group is None:
        number = zlib.crc32(name.encode()) / 2**32
        return _rgb(number, 0.55 + 0.3 * ((number * 7) % 1), 0.75 + 0.2 * ((number * 13) % 1))
    low, high, saturation, value = _PALETTES[group.id]
    stems = list(dict.fromkeys(_stem(member) for member in group.members))
    place = stems.index(_stem(name))
    hue = low + (high - low) * (place / max(1, len(stems) - 1))
    dark = side_of(name) == "right" and not group.id.startswith("ribs")
    striped = place % 2 and group.id in (
        "cervical",
        "thoracic",
        "lumbar",
        "ribs-left",
        "ribs-right",
    )
    return _rgb(hue % 1.0, saturation + (0.3 if striped else 0.0), value * (0.78 if dark else 1.0))


def _stem(name: str) -> str:
    side = side_of(name)
    return "_".join(word for word in name.split("_") if word != side) if side else name


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red, 3), round(green, 3), round(blue, 3)
