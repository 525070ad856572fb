"""Check a model's files without loading it: safetensors' headers, every value, the index of shards, code of its own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from core import bounded_json

MAX_HEADER = 100 * 1024 * 1024  # what the format allows
CHUNK = 8 * 1024 * 1024
# Bytes per value. For floats also the integer type of a value and the bits of its exponent: all ones is NaN or Inf.
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1}
_EXPONENT = {
    "F64": ("<u8", 0x7FF0 << 48),
    "F32": ("<u4", 0x7F80 << 16),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}


def weights_problems(folder: Path) -> list[str]:
    """What is wrong with the safetensors files of a folder, one sentence each; empty if they are sound."""
    tensors, problems = _tensors(folder)
    if not tensors and not problems:
        return ["there is no safetensors file"]
    return problems or _index_problems(folder / "model.safetensors.index.json", tensors)


def file_problems(folder: Path) -> list[str]:
    """As :func:`weights_problems`, of each file alone: whether the files belong together is not asked."""
    return _tensors(folder)[1]


def code_problems(folder: Path) -> list[str]:
    """Which configurations of a model name code of its own (`auto_map`), one sentence each; empty if none does.

    Whoever trusts remote code would run it, from wherever the name points: no release holds code.
    """
    problems = []
    for name in ("config.json", "tokenizer_config.json"):
        try:
            told = bounded_json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # said by whoever loads it
            continue
        if isinstance(told, dict) and told.get("auto_map"):
            problems.append(f"{name} names code of the model's own (auto_map)")
    return problems


def _tensors(folder: Path) -> tuple[dict[str, set[str]], list[str]]:
    """The names of the tensors in each sound file, and what is wrong with the others."""
    tensors, problems = {}, []
    for file in sorted(folder.glob("*.safetensors")):
        try:
            tensors[file.name] = _check_file(file)
        except _Unsound as error:
            problems.append(f"{file.name}: {error}")
    return tensors, problems


class _Unsound(Exception):  # noqa: N818  becomes a sentence of weights_problems
    pass


def _check_file(file: Path) -> set[str]:
    """Check the header and all values of a file; returns the names of its tensors."""
    header, start = _header(file)
    end_before = 0
    for name, tensor in sorted(header.items(), key=lambda item: _offsets(item[0], item[1])):
        begin, end = _offsets(name, tensor)
        dtype, shape = tensor.get("dtype"), tensor.get("shape")
        if not isinstance(dtype, str) or dtype not in _BYTES:
            raise _Unsound(f"{name} has the dtype {dtype!r}; allowed are {', '.join(_BYTES)}")
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise _Unsound(f"{name} has the shape {shape!r}")
        if begin != end_before or end - begin != math.prod(shape) * _BYTES[dtype]:
            raise _Unsound(f"{name} has offsets that do not fit its shape and the tensors before it")
        end_before = end
        if start + end > file.stat().st_size:
            raise _Unsound("the file is cut off")
        if dtype in _EXPONENT and not _finite(file, start + begin, start + end, *_EXPONENT[dtype]):
            raise _Unsound(f"{name} holds a value that is not finite")
    if start + end_before != file.stat().st_size:
        raise _Unsound("there are bytes after the last tensor")
    return set(header)


def _header(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > min(MAX_HEADER, file.stat().st_size - 8):
            raise _Unsound("it is not a safetensors file")
        text = stream.read(size)
    try:
        header = bounded_json.loads(text, object_pairs_hook=_unique)
    except ValueError as error:
        raise _Unsound(f"its header cannot be read ({error})") from error
    if not isinstance(header, dict):
        raise _Unsound("its header is not a JSON object")
    header.pop("__metadata__", None)
    if not all(isinstance(tensor, dict) for tensor in header.values()):
        raise _Unsound("its header is not a table of tensors")
    return header, 8 + size


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a name occurs twice")
    return dict(pairs)


def _offsets(name: str, tensor: dict[str, Any]) -> tuple[int, int]:
    offsets = tensor.get("data_offsets")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(offset) is int and offset >= 0 for offset in offsets)
    ):
        raise _Unsound(f"{name} has the offsets {offsets!r}")
    return offsets[0], offsets[1]


def _finite(file: Path, begin: int, end: int, words: str, exponent: int) -> bool:
    import numpy as np

    with file.open("rb") as stream:
        stream.seek(begin)
        while begin < end:
            data = stream.read(min(CHUNK, end - begin))
            values = np.frombuffer(data, dtype=words)
            mask = values.dtype.type(exponent)
            if ((values & mask) == mask).any():
                return False
            begin += len(data)
    return True


def _index_problems(index: Path, tensors: dict[str, set[str]]) -> list[str]:
    if not index.is_file():
        return [] if set(tensors) == {"model.safetensors"} else ["there are shards and no model.safetensors.index.json"]
    try:
        placed = bounded_json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        indexed = {(str(name), str(shard)) for name, shard in placed.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{index.name} cannot be read ({error!r})"]
    held = {(name, shard) for shard, names in tensors.items() for name in names}
    return [] if indexed == held else [f"{index.name} does not name the tensors that the shards hold"]
