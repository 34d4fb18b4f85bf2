"""What a kernel's entry point takes, as data: one description serves compiling, launching and testing.

An entry point is called with its arguments BY NAME; :meth:`EntryPoint.call` puts them into the order and the types of
the CUDA source and derives the grid from the sizes among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

ArgumentType: TypeAlias = Literal["pointer", "int32", "int64", "uint64", "float32"]
Grid: TypeAlias = tuple[int, int, int]
GridRule: TypeAlias = Callable[[Mapping[str, int]], tuple[Grid, int]]
"""Sizes by name -> grid and threads of a block. A grid with a 0 in it means: nothing to do, do not launch."""

THREADS = 256
# gridDim.x may be 2^31 - 1; kernels stride over the grid, so a smaller cap costs nothing.
_MOST_BLOCKS = 1 << 20
_MOST_ROWS = 65535  # gridDim.y and gridDim.z

# Whole numbers are sizes, strides and seeds: none is negative.
_MOST = {"int32": 2**31 - 1, "int64": 2**63 - 1, "uint64": 2**64 - 1}


@dataclass(frozen=True)
class Argument:
    """One argument of an entry point.

    Attributes:
        name: as in the CUDA source.
        type: "pointer" is a device address; 0 is null, allowed only where `optional`.
        meaning: dtype and shape of what it points to, or what the number is.
        optional: whether a pointer may be null.
        most: the largest whole number the kernel is written for; None: what the type holds.
    """

    name: str
    type: ArgumentType
    meaning: str
    optional: bool = False
    most: int | None = None


@dataclass(frozen=True)
class Call:
    """An entry point ready to launch: `values` are Python ints (pointers) and NumPy scalars, in order."""

    grid: Grid
    threads: int
    values: tuple[Any, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do; CUDA refuses an empty grid, so such a call is not launched."""
        return 0 in self.grid


@dataclass(frozen=True)
class EntryPoint:
    """An ``extern "C" __global__`` function of a kernel source."""

    name: str
    arguments: tuple[Argument, ...]
    grid_rule: GridRule

    def call(self, **values: Any) -> Call:
        """Order, type and check the arguments, given by name.

        Args:
            values: an int (device address) or an object with ``__int__`` for pointers, None for a null pointer;
                numbers for the rest.

        Raises:
            ValueError: a missing or unknown argument, a null pointer that is not allowed, a number out of range, or
                more rows than a grid can have.
        """
        wanted = {argument.name for argument in self.arguments}
        if wanted != values.keys():
            missing, unknown = sorted(wanted - values.keys()), sorted(values.keys() - wanted)
            raise ValueError(
                f"Kernel {self.name} got unknown arguments {unknown} and lacks {missing}: "
                f"it takes {', '.join(argument.name for argument in self.arguments)}."
            )
        ordered = tuple(_typed(self.name, argument, values[argument.name]) for argument in self.arguments)
        sizes = {a.name: int(values[a.name]) for a in self.arguments if a.type in _MOST and a.type != "uint64"}
        grid, threads = self.grid_rule(sizes)
        if max(grid[1:]) > _MOST_ROWS:
            raise ValueError(f"Kernel {self.name} would need a grid of {grid}: split the work, {_MOST_ROWS} at most.")
        return Call(grid, threads, ordered)


@dataclass(frozen=True)
class KernelSource:
    """A CUDA source file.

    Attributes:
        name: of the kernel's topic; the file is ``<name>.cu`` beside this module.
        reference: module of ``kernels/`` that holds the NumPy function(s) of the same meaning.
        entry_points: what can be launched.
    """

    name: str
    reference: str
    entry_points: tuple[EntryPoint, ...]

    def entry_point(self, name: str) -> EntryPoint:
        """The entry point of this name.

        Raises:
            ValueError: there is none.
        """
        for entry in self.entry_points:
            if entry.name == name:
                return entry
        known = ", ".join(entry.name for entry in self.entry_points)
        raise ValueError(f"Kernel source {self.name} has no entry point {name!r}: choose one of {known}.")


def elementwise(*sizes: str) -> GridRule:
    """One thread per element of the product of these sizes; the kernel strides over the grid."""

    def rule(values: Mapping[str, int]) -> tuple[Grid, int]:
        return (_blocks(_product(values, sizes)), 1, 1), THREADS

    return rule


def per_row(elements: str, rows: str, per_thread: int = 1) -> GridRule:
    """gridDim.y = rows; x covers the elements of a row, `per_thread` at a time; the kernel strides over x."""

    def rule(values: Mapping[str, int]) -> tuple[Grid, int]:
        return (_blocks(-(-values[elements] // per_thread)), values[rows], 1), THREADS

    return rule


def _blocks(count: int) -> int:
    return min(-(-count // THREADS), _MOST_BLOCKS)


def _product(values: Mapping[str, int], names: tuple[str, ...]) -> int:
    return int(np.prod([values[name] for name in names], dtype=object))


def _typed(kernel: str, argument: Argument, value: Any) -> Any:
    if argument.type == "pointer":
        address = 0 if value is None else int(value)
        if address == 0 and not argument.optional:
            raise ValueError(f"Kernel {kernel} needs memory for {argument.name} ({argument.meaning}): it got none.")
        return address
    if argument.type == "float32":
        return np.float32(value)
    most = _MOST[argument.type] if argument.most is None else argument.most
    if not 0 <= int(value) <= most:
        raise ValueError(f"Kernel {kernel} got {argument.name}={value}: give a whole number from 0 to {most}.")
    return np.dtype(argument.type).type(value)
