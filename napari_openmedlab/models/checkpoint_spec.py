"""What the catalogue says about one published weight file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["NOT_STATED", "CheckpointSpec"]

NOT_STATED = "not stated"


@dataclass(frozen=True)
class CheckpointSpec:
    """A published weight file: what it is for, on what terms, where to get it.

    Attributes
    ----------
    id : str
        Stable short name, used by the store, on the command line and in sessions.
    title : str
        Name shown to the user.
    network : str
        Name for ``napari_openmedlab.models.networks.build``.
    engine : str
        Id of the engine that the weights are made for. Several checkpoints may serve one.
    purpose : str
        One sentence: what it is good for.
    input : str
        What the network was made to see.
    classes : str
        What it can name or mark.
    code_licence, weights_licence : str
        Of the publisher's code and of the weights; :data:`NOT_STATED` where the publisher does
        not say.
    page : str
        Web page on which a person gets the file, or reads about it before a direct download.
    source : str
        The project's own page.
    how : {"direct", "browser"}
        Whether ``url`` can be fetched, or a person has to get the file in a browser.
    url : str
        Stable link to the file itself; ``""`` where there is none. Fetched only on the user's
        click.
    file : str
        The published file's name; ``""`` if it is not known.
    size : int
        Bytes of the published file; 0 where the publisher does not say.
    parameters : int
        Trainable numbers of the network; 0 if not known. Four bytes each in the store.
    sha256 : str
        Only where the publisher states one; none is invented.
    paper : str
        Where the method is described; ``""`` if our sources name none.
    non_commercial : bool
        Whether the weights have to be taken as not for commercial use.
    notes : str
        What else the user has to know before using it.
    """

    id: str
    title: str
    network: str
    engine: str
    purpose: str
    input: str
    classes: str
    code_licence: str
    weights_licence: str
    page: str
    source: str
    how: Literal["direct", "browser"] = "browser"
    url: str = ""
    file: str = ""
    size: int = 0
    parameters: int = 0
    sha256: str = ""
    paper: str = ""
    non_commercial: bool = False
    notes: str = ""

    def __post_init__(self) -> None:
        if (self.how == "direct") != bool(self.url):
            raise ValueError(f"checkpoint '{self.id}': a direct download and a link go together")

    @property
    def stored_size(self) -> int:
        """Bytes the weights take in the store, as float32; 0 if not known."""
        return 4 * self.parameters
