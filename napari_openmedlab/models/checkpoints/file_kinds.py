"""Tell by its first bytes what a file is; suffixes and names are not asked.

A failed download often leaves a web page, half a file or an empty one under the name of the
weights. Each is named as what it is, so that the user knows what to do. Needs no torch.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from napari_openmedlab.errors import CheckpointError

__all__ = ["FileKind", "file_kind", "refuse_weights_in_archive"]

FileKind = Literal["torch-zip", "torch-legacy", "safetensors"]

# The pickled number that opens each file of PyTorch before 1.6 (protocol 2, LONG1, STOP).
_LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_WEIGHTS = (".pth", ".pt", ".model", ".safetensors")
_HEAD = 4096

# First bytes -> what it is, for files that are chosen or downloaded by mistake.
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1f\x8b", "a gzip-compressed file (an image such as .nii.gz?)"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"II*\x00", "a TIFF image"),
    (0, b"MM\x00*", "a TIFF image"),
    (0, b"II+\x00", "a TIFF image"),
    (128, b"DICM", "a DICOM image"),
    (344, b"n+1\x00", "a NIfTI image"),
    (344, b"ni1\x00", "a NIfTI header"),
    (0, b"NRRD", "an NRRD image"),
    (0, b"\x89HDF", "an HDF5 file (Keras or MATLAB)"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"%PDF", "a PDF document"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive; unpack it and choose the file inside"),
    (0, b"Rar!", "a RAR archive; unpack it and choose the file inside"),
    (0, b"GGUF", "a GGUF language model"),
    (257, b"ustar", "a tar archive; unpack it and choose the file inside"),
)


def file_kind(path: Path) -> FileKind:
    """Return how a file of weights is stored.

    Returns
    -------
    {"torch-zip", "torch-legacy", "safetensors"}
        ``torch-zip`` has a complete directory and one data pickle; nothing in it was read yet.

    Raises
    ------
    CheckpointError
        For anything else, and for what can't be opened: says what it is and what to do.
    """
    size, head = _first_bytes(path)
    if head.startswith(b"PK"):
        refuse_weights_in_archive(path)
        return "torch-zip"
    if head.startswith(_LEGACY):
        return "torch-legacy"
    if _is_safetensors(head, size):
        return "safetensors"
    raise CheckpointError(f"{path.name} holds no weights: {_described(head, path)}", path)


def _first_bytes(path: Path) -> tuple[int, bytes]:
    if path.is_dir():
        raise CheckpointError(
            f"{path} is a folder; choose the file of weights inside ({', '.join(_WEIGHTS)})", path
        )
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist", path) from error
    except PermissionError as error:
        raise CheckpointError(
            f"{path} can't be read: no permission; ask its owner, or copy it to your own folder",
            path,
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}", path) from error
    if not head:
        raise CheckpointError(
            f"{path.name} is empty (0 bytes): the download failed; fetch it again", path
        )
    return size, head


def refuse_weights_in_archive(path: Path) -> None:
    """Raise unless the zip archive is one that :func:`torch.save` wrote.

    Raises
    ------
    CheckpointError
        For an archive cut short, TorchScript, an archive around the weights, any other.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path.name} is incomplete ({path.stat().st_size / 1e6:.1f} MB, its end is "
            "missing): the download was cut off; fetch it again",
            path,
        ) from error
    pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    script = [name for name in names if name.endswith("/constants.pkl") or "/code/" in name]
    if script:
        raise CheckpointError(
            f"{path.name} is a TorchScript program, not plain weights; programs are not run. "
            "Ask for the weights alone (a state_dict or .safetensors file)",
            path,
        )
    if len(set(names)) != len(names) or len(pickles) > 1:
        raise CheckpointError(
            f"{path.name} names the same part twice, which no honest file does; fetch it again "
            "from its publisher",
            path,
        )
    if not pickles:
        inside = [name for name in names if name.lower().endswith(_WEIGHTS)]
        what = (
            f"it is an archive around {inside[0]}; unpack it and choose that file"
            if inside
            else "it is an archive of something else (a document, NumPy arrays, a program?)"
        )
        raise CheckpointError(f"{path.name} holds no weights: {what}", path)


def _is_safetensors(head: bytes, size: int) -> bool:
    length = int.from_bytes(head[:8], "little")
    return len(head) > 8 and head[8:9] == b"{" and 2 <= length < 100_000_000 and size > 8


def _described(head: bytes, path: Path) -> str:
    """Return what a file is that holds no weights, and what to do."""
    for offset, magic, what in _OTHERS:
        if head[offset : offset + len(magic)] == magic:
            return f"it is {what}"
    if head.startswith(b"version https://git-lfs"):
        return (
            "it is a Git LFS pointer, which stands for the real file; download the file itself "
            "from its page"
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<"):
        return (
            "it is a web page, so the download failed or asked for a login; open the page in "
            "your browser, download the file there and import it"
        )
    if text.startswith((b"{", b"[")):
        return "it is a JSON text (an error message of the server?); fetch the file again"
    if head[:1] == b"\x80":
        return (
            "it is a Python pickle, but not of weights (a plan beside them?); choose the .pth, "
            ".pt, .model or .safetensors file"
        )
    if b"\x00" not in head and _is_text(head):
        return "it is a text file"
    return (
        f"its first bytes ({head[:8].hex(' ')}) are of no format known here; choose a .pth, .pt, "
        f".model or .safetensors file, or fetch {path.name} again"
    )


def _is_text(head: bytes) -> bool:
    try:
        head[: _HEAD - 4].decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
