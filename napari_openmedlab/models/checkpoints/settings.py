"""What the user chose about models: where they lie, mirror and proxy. One file for all programs.

The panel and the command line read and write the same JSON file in the user's configuration
folder. ``OPENMEDLAB_MODELS`` in the environment goes before the folder chosen there.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from napari_openmedlab.errors import ReadError, SettingsError, WriteError
from napari_openmedlab.io.atomic import sentence
from napari_openmedlab.models.checkpoints.disk import read_json, write_json

__all__ = [
    "FOLDER_VARIABLE",
    "ModelSettings",
    "folder_source",
    "model_folder",
    "read_settings",
    "settings_file",
    "write_settings",
]

FOLDER_VARIABLE = "OPENMEDLAB_MODELS"
_APP = "napari-openmedlab"


@dataclass(frozen=True)
class ModelSettings:
    """The user's choices; empty texts stand for the defaults.

    Attributes
    ----------
    folder : str
        Absolute path of the model folder; ``""``: in the user's data folder.
    mirror : str
        Address in place of ``https://huggingface.co``, for example
        ``"https://mirror.hospital.org/hf"``; ``""``: none.
    proxy : str
        Proxy for downloads, ``"http://host:port"``; ``""``: what the environment says
        (``HTTPS_PROXY``, ``HTTP_PROXY``, ``NO_PROXY``).

    Raises
    ------
    SettingsError
        If the folder is relative, or mirror or proxy is no http(s) address.
    """

    folder: str = ""
    mirror: str = ""
    proxy: str = ""

    def __post_init__(self) -> None:
        if self.folder and not Path(self.folder).is_absolute():
            raise SettingsError(
                f"the model folder must be a full path, got '{self.folder}'; it would be another "
                "folder for each program"
            )
        for name, address in (("mirror", self.mirror), ("proxy", self.proxy)):
            if address and not _is_web_address(address):
                raise SettingsError(
                    f"the {name} must be a web address such as http://host:8080, got '{address}'"
                )


def settings_file() -> Path:
    """Return the file that holds the settings (it may not exist yet)."""
    from platformdirs import user_config_path

    return user_config_path(_APP, appauthor=False) / "models.json"


def read_settings() -> ModelSettings:
    """Return the stored settings; the defaults if there are none.

    Raises
    ------
    ReadError
        If the file is damaged: silently forgetting a proxy or a folder would only puzzle.
    """
    path = settings_file()
    if not path.exists():
        return ModelSettings()
    found = read_json(path)
    names = ModelSettings.__dataclass_fields__
    values = {name: value for name, value in found.items() if name in names}
    try:
        if not all(isinstance(value, str) for value in values.values()):
            raise SettingsError("folder, mirror and proxy must be texts")
        return ModelSettings(**values)
    except SettingsError as error:
        raise ReadError(f"{path} is wrong: {error}. Correct or delete it", path) from error


def write_settings(settings: ModelSettings) -> Path:
    """Store the settings for all programs; return the file.

    Raises
    ------
    WriteError
    """
    path = settings_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(sentence(error, path.parent), path) from error
    write_json(path, asdict(settings))
    return path


def folder_source() -> Literal["environment", "settings", "default"]:
    """Return what decides where models lie."""
    if os.environ.get(FOLDER_VARIABLE):
        return "environment"
    return "settings" if read_settings().folder else "default"


def model_folder() -> Path:
    """Return where models lie: by the environment, else the settings, else the user's data folder.

    Raises
    ------
    ReadError
        If the settings are damaged.
    """
    from platformdirs import user_data_path

    if given := os.environ.get(FOLDER_VARIABLE):
        return Path(given).expanduser().absolute()
    if chosen := read_settings().folder:
        return Path(chosen)
    return user_data_path(_APP, appauthor=False) / "models"


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises for a port that is none
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and " " not in text
