"""What a plan is made of, read without a GPU: TensorRT for RTX logs each kernel with what it reads and writes, and the
plan holds the source of its attention kernels.

Bytes are those of the tensors, each counted once a kernel that reads or writes it: a lower bound of the traffic where a
kernel reads an input twice, an upper bound where a cache keeps it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

_KERNEL = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<type>\w+), Inputs: (?P<tensors>.*?)TacticName: ")
_TENSOR = re.compile(r"Dimensions: \[(?P<sizes>[\d,]*)\].*?Datatype: (?P<type>\w+)")
_BYTES = {
    "Double": 8,
    "Int64": 8,
    "Float": 4,
    "Int32": 4,
    "Half": 2,
    "BFloat16": 2,
    "Int8": 1,
    "UInt8": 1,
    "FP8": 1,
    "Bool": 1,
}
_WAITING = ("wait", "signal")
"""Kinds of entries that are no kernels."""

_KINDS: tuple[tuple[str, str], ...] = (
    ("attention", r"mha"),
    ("product", r"Fc|Corr"),
    ("group norm", r"Gnor|Inor|MulMeanMean|ReluAddSqrtDiv"),
    ("layer norm", r"MeanSub|SqrtDivMul"),
    ("rotary", r"MulMulSlic"),
    ("concatenation", r"Conc"),
    ("element-wise", r"Add|Mul|Sub|Silu|Gelu|Cast|Sin|Exp"),
)
"""Kind -> what the name of such a kernel holds; the first that fits. Others only move data."""

_TRAITS = re.compile(
    rb"Kernel_traits_v2_flash_attention<\s*fmha::Ampere_hmma_(fp\d+)_traits(?:,\s*fmha::Ampere_hmma_(fp\d+)_traits)?"
)

_PRODUCT = re.compile(rb'fully_connected=\{[^\n]*? input=\{"([^"]*)"[^\n]*? accumulation_type=(\d+)')
_TYPE = re.compile(rb'tensor=\{[^\n]*? name="([^"]*)"[^\n]* type=(\w+)')
_ACCUMULATORS = {b"0": "auto", b"2": "fp32"}
"""As plans of version 1.7 number them, found by building: a plain product has 0, which leaves the choice to the card's
kernels; one of float16 operands cast to float32 has 2. One of float32 operands has 0 too, and accumulates in float32.
"""


@dataclass
class Contents:
    """A plan's kernels; for more than one profile those of all."""

    kernels: dict[str, int] = field(default_factory=dict)
    """By kind."""
    bytes: dict[str, int] = field(default_factory=dict)
    """Of the tensors that they read and write, by kind."""

    @property
    def attentions(self) -> int:
        return self.kernels.get("attention", 0)

    def add(self, line: str) -> None:
        """Count a line of the log, if it is of a kernel."""
        found = _KERNEL.match(line)
        if found is None or found["type"] in _WAITING:
            return
        kind = kind_of(found["name"], found["type"])
        moved = sum(_size(tensor["sizes"], tensor["type"]) for tensor in _TENSOR.finditer(found["tensors"]))
        self.kernels[kind] = self.kernels.get(kind, 0) + 1
        self.bytes[kind] = self.bytes.get(kind, 0) + moved

    def as_record(self) -> dict[str, object]:
        """For the facts beside an engine."""
        return {"kernels": dict(sorted(self.kernels.items())), "bytes": dict(sorted(self.bytes.items()))}


def read_log(lines: Iterable[str]) -> Contents:
    """The kernels of a builder's log at VERBOSE."""
    contents = Contents()
    for line in lines:
        contents.add(line)
    return contents


def read_accumulation(plan: bytes | memoryview) -> tuple[dict[str, int], dict[str, int]]:
    """fp16, fp32 -> attention kernels of a plan whose product of queries and keys accumulates in it; and those whose
    product of weights and values does.
    """
    traits = [match.groups() for match in _TRAITS.finditer(plan)]
    scores, values = (Counter(pair[part].decode() for pair in traits if pair[part]) for part in (0, 1))
    return dict(scores), dict(values)


def read_product_accumulation(plan: bytes | memoryview) -> dict[str, int]:
    """auto, fp32 -> matrix products of a plan that are to accumulate in it; a number that is not known keeps its name,
    such as "type 1". Convolutions do not say.
    """
    types = {match[1]: match[2] for match in _TYPE.finditer(plan)}
    found: dict[str, int] = {}
    for match in _PRODUCT.finditer(plan):
        name = _ACCUMULATORS.get(match[2], f"type {match[2].decode()}")
        if name == "auto" and types.get(match[1]) == b"float":
            name = "fp32"
        found[name] = found.get(name, 0) + 1
    return found


def kind_of(name: str, layer_type: str) -> str:
    """What a kernel does, by its name in the log."""
    if layer_type in ("gemm", "correlation"):
        return "product"
    return next((kind for kind, holds in _KINDS if re.search(holds, name)), "layout")


def _size(sizes: str, dtype: str) -> int:
    # An element of a type that is not known counts as half precision.
    return prod(int(size) for size in sizes.split(",") if size) * _BYTES.get(dtype, 2)
