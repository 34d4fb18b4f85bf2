"""Every CUDA kernel of this package: what its entry points take, and the grid that they run on.

Names, order and types of arguments are read from the sources; here stands what these do not say. An entry point is
called with its arguments BY NAME. Type suffixes of entry points: f32 float32, f16 IEEE half, bf16 bfloat16.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(__file__).parent
MOMENT_BLOCKS = 32
"""Partial sums per video that guidance_moments leaves, each [4] float64."""
CALL_KERNELS = ("guided_step", "frame_init", "frames_to_uint8", "noise", "philox")
"""Sources of the kernels that a call may launch; bundles hold these. No engine uses the attention yet."""
HEAD_SIZES = (40, 80, 160)
_THREADS = 256
# gridDim.x may be 2^31 - 1; kernels stride over the grid, so a smaller cap costs nothing.
_MOST_BLOCKS = 1 << 20
_MOST_ROWS = 65535  # gridDim.y and gridDim.z
_FUNCTION = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(\w+\) )?([\w#]+)\(([^)]*)\)')
_NUMBERS = {"int": "int32", "long long": "int64", "unsigned long long": "uint64", "float": "float32"}
# Whole numbers are sizes, strides and seeds: none is negative.
_MOST = {"int32": 2**31 - 1, "int64": 2**63 - 1, "uint64": 2**64 - 1}


class Call(NamedTuple):
    """An entry point ready to launch. CUDA refuses a grid with a 0 in it: then there is nothing to do."""

    grid: tuple[int, int, int]
    threads: int
    """Of a block."""
    values: tuple[Any, ...]
    """Python ints (addresses) and NumPy scalars, in order."""


Sizes = Mapping[str, int]
GridRule = Callable[[Sizes], tuple[tuple[int, int, int], int]]
"""Whole-number arguments by name -> grid, and threads of a block."""


@dataclass(frozen=True)
class EntryPoint:
    """An ``extern "C" __global__`` function."""

    name: str
    source: str
    """Its file is ``<source>.cu`` beside this module."""
    arguments: Mapping[str, str]
    """Name -> "pointer", or NumPy's name of the number's type."""
    grid: GridRule
    nullable: frozenset[str] = frozenset()
    """Pointers that may be null."""
    most: Mapping[str, int] | None = None
    """The largest numbers the kernel is written for, where that is less than the type holds."""

    def call(self, **values: Any) -> Call:
        """Order, type and check the arguments, given by name: an int (device address) or an object with ``__int__`` for
        a pointer, None for a null one, numbers for the rest.

        Raises:
            ValueError: a missing or unknown argument, a null pointer that is not allowed, a number out of range, or
                more rows than a grid can have.
        """
        if self.arguments.keys() != values.keys():
            missing, unknown = sorted(self.arguments.keys() - values.keys()), sorted(values.keys() - self.arguments)
            raise ValueError(
                f"Kernel {self.name} got unknown arguments {unknown} and lacks {missing}: "
                f"it takes {', '.join(self.arguments)}."
            )
        ordered = tuple(self._typed(name, kind, values[name]) for name, kind in self.arguments.items())
        grid, threads = self.grid({name: int(values[name]) for name, kind in self.arguments.items() if kind in _MOST})
        if max(grid[1:]) > _MOST_ROWS:
            raise ValueError(f"Kernel {self.name} would need a grid of {grid}: split the work, {_MOST_ROWS} at most.")
        return Call(grid, threads, ordered)

    def _typed(self, name: str, kind: str, value: Any) -> Any:
        if kind == "pointer":
            address = 0 if value is None else int(value)
            if address == 0 and name not in self.nullable:
                raise ValueError(f"Kernel {self.name} needs memory for {name}: it got none.")
            return address
        if kind in _MOST:
            most = (self.most or {}).get(name, _MOST[kind])
            if not 0 <= int(value) <= most:
                raise ValueError(f"Kernel {self.name} got {name}={value}: give a whole number from 0 to {most}.")
        return np.dtype(kind).type(value)


def elementwise(*sizes: str) -> GridRule:
    """One thread per element of the product of these sizes; the kernel strides over the grid."""
    return lambda values: ((_blocks(math.prod(values[name] for name in sizes)), 1, 1), _THREADS)


def per_row(elements: str, rows: str, per_thread: int = 1) -> GridRule:
    """gridDim.y = rows; x covers the elements of a row, `per_thread` at a time; the kernel strides over x."""
    return lambda values: ((_blocks(-(-values[elements] // per_thread)), values[rows], 1), _THREADS)


def _blocks(count: int) -> int:
    return min(-(-count // _THREADS), _MOST_BLOCKS)


def _attention_grid(values: Sizes) -> tuple[tuple[int, int, int], int]:
    """One block per position, head and clip; four threads per query, whole warps."""
    positions = values["height"] * values["width"] if values["frames"] else 0
    return (positions, values["heads"], values["clips"]), -(-4 * values["frames"] // 32) * 32


# Source -> its functions, without the suffixes of head size and type.
_GRIDS: dict[str, dict[str, GridRule]] = {
    "guided_step": {
        "guidance_moments": lambda values: ((MOMENT_BLOCKS, values["videos"], 1), _THREADS),
        "guided_step": per_row("elements", "videos"),
        "repeat_rows": elementwise("elements"),
        "advance_step": lambda values: ((1, 1, 1), 1),
    },
    "frames_to_uint8": {"frames_to_uint8": elementwise("frames", "area")},
    "frame_init": {
        "frame_init_difference": elementwise("planes", "frames", "area"),
        "low_pass_mix": elementwise("planes", "bins"),
        "initial_latents": elementwise("planes", "frames", "area"),
    },
    "noise": {
        "mix_noise_pyoco_mixed": elementwise("planes", "frames", "area"),
        "mix_noise_pyoco_progressive": elementwise("planes", "area"),
    },
    "philox": {"philox_normal": per_row("elements", "videos", per_thread=4)},
    "temporal_window_attention": {"temporal_window_attention": _attention_grid},
}
_NULLABLE = {
    "guided_step": ("noise", "moments", "rows"),
    "frames_to_uint8": ("overflowed",),
    "initial_latents": ("correction", "first_frame"),
    "philox_normal": ("step",),
    "temporal_window_attention": ("rotation",),
}
_LARGEST = {"guided_step": {"states": 4}, "temporal_window_attention": {"frames": 32}}


def _entry_points(source: str, grids: Mapping[str, GridRule]) -> dict[str, EntryPoint]:
    text = (FOLDER / f"{source}.cu").read_text(encoding="utf-8").replace("\\\n", "\n")
    arguments = {}
    for function, listed in _FUNCTION.findall(text):
        pairs = [argument.strip().rpartition(" ")[::2] for argument in listed.split(",")]
        arguments[function] = {
            name.lstrip("*"): "pointer" if "*" in kind + name else _NUMBERS[kind] for kind, name in pairs
        }
    found = {}
    for base, grid in grids.items():
        (written,) = (function for function in arguments if re.sub("(_d##D##)?(_##suffix)?$", "", function) == base)
        names = [written]
        for place, filled in (("##D##_", [f"{size}_" for size in HEAD_SIZES]), ("##suffix", ["f32", "f16", "bf16"])):
            names = [name.replace(place, one) for name in names for one in (filled if place in name else [""])]
        nullable = frozenset(_NULLABLE.get(base, ()))
        for name in names:
            found[name] = EntryPoint(name, source, arguments[written], grid, nullable, _LARGEST.get(base))
    return found


SOURCES: dict[str, dict[str, EntryPoint]] = {source: _entry_points(source, grids) for source, grids in _GRIDS.items()}
"""Source -> its entry points by name, in the order of use."""
