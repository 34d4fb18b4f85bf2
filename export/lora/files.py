"""Reading LoRA files without torch: ``FILE[:SCALE]``, and safetensors as NumPy arrays."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...runtime.files.guarded_read import open_regular, parse_json

_MAX_BYTES = 1 << 32
_MAX_HEADER_BYTES = 1 << 24
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class LoraRequest:
    """A file and the strength at which it is merged."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> LoraRequest:
        """``style.safetensors`` or ``style.safetensors:0.8``; a colon that no number follows belongs to the path.

        Raises:
            UserError: the scale is not finite.
        """
        path, colon, number = text.rpartition(":")
        try:
            scale = float(number) if colon and path else None
        except ValueError:
            scale = None
        if scale is None:
            return cls(Path(text))
        if not math.isfinite(scale):
            raise UserError(f"LoRA {text[:200]!r}: a scale is a finite number, as in style.safetensors:0.8.")
        return cls(Path(path), scale)


@dataclass(frozen=True)
class LoraTensors:
    """What a LoRA file holds."""

    path: Path
    sha256: str
    """Of the file."""
    tensors: dict[str, NDArray[np.float32]]
    metadata: Mapping[str, Any]
    """Of the file's header; empty where it has none."""


def read_lora_file(path: Path) -> LoraTensors:
    """Read a safetensors file; float64, float32, float16 and bfloat16 become float32.

    Raises:
        UserError: no regular file, another format, a damaged header, or tensors that are not real numbers.
    """
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is no safetensors file, the one format that is read without torch: merge it with "
            "'consisti2v export MODEL --lora FILE', or save it as safetensors."
        )
    try:
        with open_regular(path) as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): give a safetensors file.") from None
    if len(content) > _MAX_BYTES:
        raise UserError(f"{path} is larger than {_MAX_BYTES >> 30} GiB: give a LoRA, not a whole model.")
    try:
        tensors, metadata = _parse(content)
    except ValueError as error:
        raise UserError(f"{path} cannot be read as a LoRA ({error}): download it again.") from None
    return LoraTensors(path, hashlib.sha256(content).hexdigest(), tensors, metadata)


def _parse(content: bytes) -> tuple[dict[str, NDArray[np.float32]], Mapping[str, Any]]:
    """Tensors and metadata; ValueError says what is wrong."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= length <= min(len(content) - 8, _MAX_HEADER_BYTES):
        raise ValueError("its header is damaged")
    header = parse_json(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    metadata = header.pop("__metadata__", {})
    data, tensors = memoryview(content)[8 + length :], {}
    for name, entry in header.items():
        tensors[name] = _tensor(name[:80], entry, data)
    return tensors, metadata if isinstance(metadata, dict) else {}


def _tensor(name: str, entry: Any, data: memoryview) -> NDArray[np.float32]:
    fields = entry if isinstance(entry, dict) else {}
    kind, shape, place = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ValueError(f"tensor {name!r} has dtype {str(kind)[:20]}, which is none of {', '.join(_DTYPES)}")
    for sizes in (shape, place):
        if not isinstance(sizes, list) or not all(type(size) is int and 0 <= size <= _MAX_BYTES for size in sizes):
            raise ValueError(f"tensor {name!r} has no shape or place")
    assert isinstance(shape, list) and isinstance(place, list)
    dtype = np.dtype(_DTYPES[kind])
    if len(place) != 2 or len(shape) > 8 or place[1] > len(data):
        raise ValueError(f"tensor {name!r} lies outside the file")
    if place[1] - place[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"tensor {name!r} has another size than its shape")
    values = np.frombuffer(data[place[0] : place[1]], dtype).reshape(shape)
    if kind == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # a number that float32 does not hold is refused as infinite
        return values.astype(np.float32)
