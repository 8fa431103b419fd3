"""Open the files of :func:`torch.save`, in both its formats, without trusting them.

Each pickle is surveyed first (:mod:`.pickle_survey`), then :func:`torch.load` reads the file
with ``weights_only=True``. In the zip format the weights are memory-mapped, so that they are
in memory once at most.
"""

from __future__ import annotations

import io
import os
import pickle
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from napari_openmedlab.errors import CheckpointError
from napari_openmedlab.models.checkpoints.pickle_survey import (
    DAMAGED,
    DICT_LIKE,
    HARMLESS,
    Survey,
    inert_class,
    survey_pickle,
)

__all__ = ["load_legacy", "load_zip"]

# torch keeps one list of allowed names for the whole process: two files read at the same time
# would take each other's names away.
_ALLOWED_NAMES = threading.Lock()
_LARGEST_PICKLE = 64 * 2**20  # the pickle names tensors, it does not hold them
_LEGACY_PICKLES = 5  # magic number, protocol, system, content, keys of the storages
_PROTOCOL = 2  # torch.save's own; torch's safe reader does not know all of the later ones
_RUNS_PROGRAMS = ("builtins", "__builtin__", "os", "posix", "nt", "subprocess", "sys", "runpy")

# Names that torch can write for tensors which are no plain weights.
_SPECIAL = {
    "torch._utils._rebuild_qtensor": "quantized tensors",
    "torch._utils._rebuild_sparse_tensor": "sparse tensors",
    "torch._utils._rebuild_sparse_csr_tensor": "sparse tensors",
    "torch._utils._rebuild_meta_tensor_no_storage": "tensors without values",
    "torch._utils._rebuild_tensor_v3": "tensors of a number type that is not used for weights here",
    "torch._tensor._rebuild_from_type_v2": "tensors of a special class",
    "torch._utils._rebuild_wrapper_subclass": "tensors of a special class",
}
# What such tensors bring along.
_COMPANIONS = (
    "torch.Q",
    "torch.per_",
    "torch.float8",
    "torch.uint",
    "torch.storage.UntypedStorage",
)


def load_zip(path: Path) -> Any:
    """Return the content of a file in the zip format (PyTorch 1.6 and later).

    Parameters
    ----------
    path : Path
        An archive that :func:`.file_kinds.file_kind` named ``torch-zip``.

    Returns
    -------
    object
        As it was saved; what is not a tensor or a plain Python value is an inert stand-in.
        Tensors are on the CPU and mapped to the file where it is stored uncompressed.

    Raises
    ------
    CheckpointError
        If the file names anything but weights, or is damaged.
    """
    with _explained(path), zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        content = next(n for n in entries if n.count("/") == 1 and n.endswith("/data.pkl"))
        if entries[content].file_size > _LARGEST_PICKLE:
            raise ValueError("a description larger than any real one")
        survey = survey_pickle(io.BytesIO(archive.read(content)))
        _refuse(survey, path)
        folder = content.removesuffix("data.pkl") + "data/"
        for storage in survey.storages.values():
            if entries[folder + storage.key].file_size != storage.size:
                raise ValueError(f"part {storage.key} has not the size it should have")
        # torch maps a compressed part as if it were not: numbers without sense, no error.
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries.values())
        byteorder = content.removesuffix("data.pkl") + "byteorder"
        little = byteorder not in entries or archive.read(byteorder) == b"little"
    return _load(path, mmap=stored and little)


def load_legacy(path: Path) -> Any:
    """Return the content of a file in the format of PyTorch before 1.6.

    Parameters
    ----------
    path : Path
        A file that :func:`.file_kinds.file_kind` named ``torch-legacy``.

    Returns
    -------
    object
        As from :func:`load_zip`, but the tensors are in memory.

    Raises
    ------
    CheckpointError
        If the file names anything but weights, or is damaged or cut short.
    """
    size = path.stat().st_size
    with _explained(path), path.open("rb") as file:
        survey = Survey()
        for _ in range(_LEGACY_PICKLES):
            survey_pickle(file, survey)
            _refuse(survey, path)
        numbers = sum(8 + storage.size for storage in survey.storages.values())
        if file.tell() + numbers > size:
            raise EOFError
    return _load(path, mmap=False)


def _load(path: Path, mmap: bool) -> Any:
    inert = inert_class()
    allowed = [(inert, name) for name in HARMLESS] + [(_plain_dict, DICT_LIKE)]
    with (
        _explained(path),
        _ALLOWED_NAMES,
        torch.serialization.safe_globals(allowed),
    ):
        if path.suffix.lower() == ".safetensors":  # torch.load would go by the suffix
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        return torch.load(os.fspath(path), map_location="cpu", weights_only=True, mmap=mmap)


def _plain_dict(*_arguments: Any) -> dict[Any, Any]:
    """Stand in for a dictionary class whose items follow one by one."""
    return {}


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what reading can raise into one sentence for the user."""
    try:
        yield
    except CheckpointError:
        raise
    except EOFError as error:
        raise CheckpointError(
            f"{path.name} is incomplete: the file ends before its weights do, so the download was "
            "cut off; fetch it again",
            path,
        ) from error
    except MemoryError as error:
        raise CheckpointError(
            f"there is not enough memory to read {path.name}; close other programs", path
        ) from error
    except (*DAMAGED, OSError, zipfile.BadZipFile, StopIteration) as error:
        reason = str(error).strip().splitlines() if not _is_torchs_advice(error) else []
        why = f" ({reason[0]})" if reason else ""
        raise CheckpointError(
            f"{path.name} is damaged or not a file of weights{why}; fetch it again", path
        ) from error


def _is_torchs_advice(error: BaseException) -> bool:
    """Whether the text is torch's, which explains how to switch the protection off."""
    return isinstance(error, pickle.UnpicklingError) and "weights_only" in str(error)


def _refuse(survey: Survey, path: Path) -> None:
    """Raise if the pickle names anything that is not on the lists."""
    if not survey.refused:
        if survey.protocol > _PROTOCOL:
            raise CheckpointError(
                f"{path.name} was saved with pickle protocol {survey.protocol}, which PyTorch "
                "can't read safely; save it again with torch.save's own setting or as safetensors",
                path,
            )
        return
    special = {_SPECIAL[name] for name in survey.refused if name in _SPECIAL}
    if special and all(n in _SPECIAL or n.startswith(_COMPANIONS) for n in survey.refused):
        raise CheckpointError(
            f"{path.name} holds {' and '.join(sorted(special))}, which no network here can take; "
            "save its weights as plain float32 tensors",
            path,
        )
    names = ", ".join(repr(name) for name in survey.refused[:5])
    more = f" and {len(survey.refused) - 5} more" if len(survey.refused) > 5 else ""
    if any(name.split(".")[0] in _RUNS_PROGRAMS for name in survey.refused):
        meaning = "That is how harmful files start programs: do not open it with other tools either"
    else:
        meaning = "It was perhaps saved as a whole Python object instead of its weights"
    raise CheckpointError(
        f"{path.name} was refused, and nothing in it was run: besides weights it asks for {names}"
        f"{more}, and reading that could run code hidden in the file. {meaning}. Ask its publisher "
        "for the weights alone (a state_dict, or a .safetensors file)",
        path,
    )
