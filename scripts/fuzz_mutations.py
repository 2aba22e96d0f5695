"""What is done to a file: bytes changed, and what the bytes mean changed."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from typing import Any

import onnx

NUMBERS = (0, 1, -1, 2, 255, 1 << 31, (1 << 31) - 1, 1 << 60, -(1 << 63), (1 << 63) - 1)
TEXTS = ("", "x", "\0", "\x1b[2J\n", "../../secret", "/etc/passwd", "\ud800", "9" * 5000, "[/b]")
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1 << 70, 1e999, float("nan"), 0.5, [], {}, [[]], [1], {"a": {}}),
    *TEXTS,
)


def flipped(content: bytes, rng: random.Random) -> bytes:
    """Overwrite, drop, repeat or add some bytes, mostly near either end."""
    mutant = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        reach = min(len(mutant), rng.choice((64, 1024, len(mutant)))) or 1
        place = rng.randrange(reach)
        place = place if rng.random() < 0.6 else max(0, len(mutant) - 1 - place)
        new = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80", rng.randbytes(1), rng.randbytes(9)))
        dropped = rng.choice((len(new), len(new), 0, 4, 200))
        mutant[place : place + dropped] = new
    if rng.random() < 0.1:
        del mutant[rng.randrange(len(mutant) + 1) :]
    return bytes(mutant)


def altered(tree: Any, rng: random.Random) -> Any:
    """Return a JSON value with one part of it replaced, dropped or doubled."""
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        key = rng.choice(list(tree))
        action = rng.random()
        if action < 0.1:
            return {k: v for k, v in tree.items() if k != key}
        if action < 0.2:
            return {**tree, rng.choice(TEXTS): tree[key]}
        return {**tree, key: altered(tree[key], rng)}
    if isinstance(tree, list) and tree and rng.random() < 0.85:
        place = rng.randrange(len(tree))
        return [*tree[:place], altered(tree[place], rng), *tree[place + 1 :]]
    return rng.choice(VALUES)


def altered_json(content: bytes, rng: random.Random) -> bytes:
    """Return JSON text with parts of another type or value."""
    tree = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        tree = altered(tree, rng)
    return json.dumps(tree).encode()


def altered_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Return a safetensors file with a changed header of the right length."""
    length = int.from_bytes(content[:8], "little")
    header = altered_json(content[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def altered_zip(content: bytes, rng: random.Random) -> bytes:
    """Return a zip archive, with right checksums, one of whose files is damaged."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(entries, key=lambda n: (not n.endswith((".pkl", ".json")), n))[:8])
    action = rng.random()
    if action < 0.05:
        entries.pop(name)
    elif action < 0.1:
        entries[f"../{name}"] = entries[name]
    else:
        entries[name] = flipped(entries[name], rng)
    file = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return file.getvalue()


def altered_onnx(content: bytes, rng: random.Random) -> bytes:
    """Return an ONNX model with changed fields: names, numbers, types, nodes dropped or doubled."""
    model = onnx.ModelProto.FromString(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        _alter_message(model, rng)
    return model.SerializeToString()


def _alter_message(message: Any, rng: random.Random) -> None:
    fields = [(d, v) for d, v in message.ListFields() if d.name != "doc_string"]
    if not fields:
        return
    field, value = rng.choice(fields)
    repeated = hasattr(value, "extend")
    if repeated and rng.random() < 0.2:
        place = rng.randrange(len(value))
        if rng.random() < 0.5:
            del value[place]
        else:
            value.extend([value[place]])
    elif field.message_type is not None:
        _alter_message(rng.choice(value) if repeated else value, rng)
    elif repeated:
        value[rng.randrange(len(value))] = _scalar(value[0], message, rng)
    else:
        _set(message, field.name, _scalar(value, message, rng))


def _scalar(value: Any, message: Any, rng: random.Random) -> Any:
    if isinstance(value, bytes):
        return flipped(value, rng)
    if isinstance(value, str):
        return rng.choice((*TEXTS[:5], "x", "y", "Concat", "Relu", "CReLU", "crelu_deploy", value))
    if isinstance(value, float):
        return rng.choice((float("nan"), float("inf"), 0.0, -1.0, 1e38))
    return rng.choice((*NUMBERS, value + 1, rng.randrange(20)))


def _set(message: Any, name: str, value: Any) -> None:
    try:
        setattr(message, name, value)
    except (ValueError, UnicodeEncodeError):
        setattr(message, name, type(getattr(message, name))())  # outside the field's range


Mutation = Callable[[bytes, random.Random], bytes]


def damaged(content: bytes, rng: random.Random, *mutations: Mutation) -> bytes:
    """Damage bytes, or what they mean."""
    return rng.choice((flipped, *mutations, *mutations))(content, rng)
