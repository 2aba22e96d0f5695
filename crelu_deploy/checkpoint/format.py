"""What kind of file a checkpoint is, told by its first bytes and never by its name.

Nothing is unpickled and nothing large is read here.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable
from enum import Enum
from pathlib import Path

from crelu_deploy.errors import CheckpointError


class Format(Enum):
    """A kind of file that holds a network's weights; the value names it in messages."""

    SAFETENSORS = "safetensors file"
    ZIP = "torch.save archive"
    LEGACY = "torch.save file from before PyTorch 1.6"
    TORCHSCRIPT = "TorchScript archive"
    EXPORTED = "torch.export program"

    @property
    def runs_code(self) -> bool:
        """Whether loading it can run code from the file, with no restricted way to load it."""
        return self in (Format.TORCHSCRIPT, Format.EXPORTED)


HEAD = 65536
"""Bytes that are read to tell a format."""

LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")
"""The number 0x1950a86a20f9469cfc6c, which a legacy file pickles first."""

SAFETENSORS_HEADER_LIMIT = 100_000_000
"""Bytes; the limit that the safetensors library itself sets."""

UNPACKED_RATIO, UNPACKED_SLACK = 20, 16 << 20
"""A zip archive may unpack to this many times its size, plus these bytes."""

_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself: run `git lfs pull`"),
    (b"<!doctype html", "a web page, so its download went wrong: download it again"),
    (b"<html", "a web page, so its download went wrong: download it again"),
    (b"gguf", "a GGUF file, which holds no PyTorch weights"),
    (b"\x89hdf\r\n", "an HDF5 file (Keras): convert it to ONNX, then use `crelu optimize`"),
    (b"\x93numpy", "a NumPy array: save a PyTorch state_dict instead"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"bzh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zxz", "compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
)
"""First bytes in lower case -> what the file is, and the way out."""


def detect(path: str | os.PathLike[str]) -> Format:
    """Return the format of a file.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or it is nothing that PyTorch
            weights come in; the message starts with the path and says what it seems to be.
    """
    try:
        return _detect(Path(path))
    except CheckpointError as error:
        raise located(path, error) from error


def located(path: str | os.PathLike[str], error: CheckpointError) -> CheckpointError:
    """Return the same error with the path in front, on one line of printable characters.

    Names out of a file can hold anything, line breaks and terminal escapes too.
    """
    text = "".join(c if c.isprintable() else " " for c in str(error))
    return CheckpointError(f"{os.fspath(path)}: {' '.join(text.split())}")


def _detect(path: Path) -> Format:
    head = _head(path)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _detect_zip(path)
    if head[8:9] == b"{" and b"\0" in head[:8]:
        _check_safetensors(head, path.stat().st_size)
        return Format.SAFETENSORS
    if head.startswith(b"\x80") and LEGACY_MAGIC in head[:32]:
        return Format.LEGACY
    raise CheckpointError(f"is {_foreign(head)}")


def _head(path: Path) -> bytes:
    try:
        if not (path.is_file() or path.is_dir()):
            path.stat()
            raise CheckpointError("is a device or a pipe: give a file")
        with path.open("rb") as file:
            head = file.read(HEAD)
    except FileNotFoundError as error:
        raise CheckpointError("there is no such file") from error
    except IsADirectoryError as error:
        raise CheckpointError("is a folder: give the checkpoint file inside it") from error
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}") from error
    if not head:
        raise CheckpointError("is empty: copy or download it again")
    return head


def _check_safetensors(head: bytes, size: int) -> None:
    length = int.from_bytes(head[:8], "little")
    if length > min(size - 8, SAFETENSORS_HEADER_LIMIT):
        raise CheckpointError(
            f"is a safetensors file whose header claims {length} bytes, in a file of {size}: "
            "it is corrupt or cut off, copy or download it again"
        )


def _detect_zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise CheckpointError(
            "is a zip archive that is corrupt or cut off: copy or download it again"
        ) from error
    _check_unpacked(sum(entry.file_size for entry in entries), path.stat().st_size)
    names = [entry.filename for entry in entries]
    if _holds(names, "archive_format") or "serialized_exported_program.json" in names:
        return Format.EXPORTED
    if _holds(names, "constants.pkl"):
        return Format.TORCHSCRIPT
    if _holds(names, "data.pkl"):
        return Format.ZIP
    if names and all(name.endswith(".npy") for name in names):
        raise CheckpointError("is a NumPy .npz file: save a PyTorch state_dict instead")
    raise CheckpointError("is a zip archive, but not one that PyTorch wrote: unpack it first")


def _holds(names: Iterable[str], last: str) -> bool:
    """Whether one of the names is ``last`` right inside a top folder, where PyTorch puts it."""
    return any(name.count("/") == 1 and name.endswith(f"/{last}") for name in names)


def _check_unpacked(unpacked: int, size: int) -> None:
    if unpacked > UNPACKED_RATIO * size + UNPACKED_SLACK:
        raise CheckpointError(
            f"is a zip archive of {size} bytes that unpacks to {unpacked}: refused, since "
            "torch.save writes its tensors uncompressed"
        )


def _foreign(head: bytes) -> str:
    """Say what a file that is no checkpoint seems to be, and the way out."""
    lowered = head[:64].lstrip().lower()
    for start, what in _FOREIGN:
        if lowered.startswith(start):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it, or save it again if PyTorch 0.1 wrote it"
    if head.startswith(b"\x80"):
        return "a plain pickle: save the state_dict with torch.save or as safetensors"
    if _is_onnx(head):
        return "an ONNX model, which needs no export: use `crelu optimize`"
    return _text(head) or f"not a checkpoint: it starts with the bytes {head[:8].hex(' ')}"


def _is_onnx(head: bytes) -> bool:
    """Whether it starts as ``ModelProto`` does: field 1, a small version, then a field 2 to 9."""
    small = head[:1] == b"\x08" and len(head) > 2 and head[1] < 64
    return small and head[2] in (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42)


def _text(head: bytes) -> str | None:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # Not merely a character cut in two by the limit.
            return None
        text = head[: error.start].decode()
    if not all(c.isprintable() or c.isspace() for c in text):
        return None
    if text.lstrip().startswith("{") and '"weight_map"' in text:
        return f"the index of a sharded checkpoint{_shards(text)}: merge the shards into one file"
    return "a text file, not a checkpoint"


def _shards(text: str) -> str:
    try:
        names = sorted({str(name) for name in json.loads(text)["weight_map"].values()})
    except (ValueError, TypeError, AttributeError):
        return ""
    return f" ({len(names)} files: {', '.join(names[:3])}{', ...' * (len(names) > 3)})"
