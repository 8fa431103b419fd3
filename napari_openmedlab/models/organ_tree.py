"""The structures of a model as a tree of groups that can be searched. No Qt."""

from __future__ import annotations

from collections.abc import Sequence

from napari_openmedlab.models.organs import GROUPS, Group, title_of

__all__ = ["found_in", "tree_of"]


def tree_of(names: Sequence[str]) -> tuple[Group, ...]:
    """Return the groups that hold these structures; what no group knows stands in one of its own.

    Parameters
    ----------
    names : sequence of str
        Class names without the background.
    """
    wanted = set(names)
    groups = tuple(kept for group in GROUPS if (kept := _kept(group, wanted)) is not None)
    known = {name for group in groups for name in group.names()}
    rest = tuple(name for name in names if name not in known)
    title = "Other structures" if groups else "Structures"
    return (*groups, Group("others", title, rest)) if rest else groups


def found_in(text: str, name: str, groups: Sequence[Group]) -> bool:
    """Return whether each word of a search is part of a structure's name or of a group's.

    Parameters
    ----------
    text : str
        Empty: everything is found.
    name : str
    groups : sequence of Group
        Those it stands in.
    """
    titles = " ".join(f"{group.id} {group.title}" for group in groups)
    words = f"{name} {name.replace('_', ' ')} {title_of(name)} {titles}".lower()
    return all(word in words for word in text.lower().split())


def _kept(group: Group, wanted: set[str]) -> Group | None:
    members = tuple(name for name in group.members if name in wanted)
    parts = tuple(kept for part in group.parts if (kept := _kept(part, wanted)) is not None)
    if not members and not parts:
        return None
    return Group(group.id, group.title, members, parts)
