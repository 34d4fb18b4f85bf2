"""Values of a configuration that comes from outside: their kind and range, checked before anything is built."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError, shown

MAX_LEVELS = 8
MAX_LAYERS = 64
MAX_WIDTH = 16384
MAX_FRAMES = 1024
MAX_SAMPLE_SIZE = 1024
# Of one network. The published U-Net has 1.4e9, the largest text encoder of a published diffusion model 4.7e9.
MAX_PARAMETERS = 10**10


class ConfigValues:
    """The entries of one configuration; every method raises a UserError for a value of another kind or out of range.

    Args:
        part: what the configuration is of, for messages: "VAE".
        values: from JSON; entries that are null count as missing.
    """

    def __init__(self, part: str, values: Mapping[str, Any]) -> None:
        self._part = part
        self._values = values

    def check_int(self, name: str, default: int, lowest: int, highest: int) -> int:
        """A whole number."""
        return self._check_int(name, self._get(name, default), lowest, highest)

    def check_float(self, name: str, default: float, lowest: float, highest: float) -> float:
        """A number above `lowest`, up to `highest`; NaN is none."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not lowest < value <= highest:
            raise self._refuse(name, value, f"a number above {lowest:g}, up to {highest:g}")
        return float(value)

    def check_ints(self, name: str, default: Sequence[int], highest: int) -> tuple[int, ...]:
        """A list of 1 to :data:`MAX_LEVELS` whole numbers from 1 on."""
        return tuple(self._check_int(name, value, 1, highest) for value in self._list(name, default))

    def check_choices(self, name: str, default: Sequence[str], allowed: Sequence[str]) -> tuple[str, ...]:
        """A list of 1 to :data:`MAX_LEVELS` names."""
        values = self._list(name, default)
        for value in values:
            if value not in allowed:
                raise self._refuse(name, value, f"names among {', '.join(allowed)}")
        return tuple(values)

    def _get(self, name: str, default: Any) -> Any:
        value = self._values.get(name)
        return default if value is None else value

    def _check_int(self, name: str, value: Any, lowest: int, highest: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise self._refuse(name, value, f"a whole number from {lowest} to {highest}")
        return value

    def _list(self, name: str, default: Sequence[Any]) -> list[Any]:
        value = self._get(name, list(default))
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_LEVELS:
            raise self._refuse(name, value, f"a list of 1 to {MAX_LEVELS} entries")
        return value

    def _refuse(self, name: str, value: object, wanted: str) -> UserError:
        return UserError(f"{self._part} option {name}={shown(value)} is not possible: give {wanted}.")


def check_parameters(part: str, parameters: int, weight_bytes: int | None = None) -> None:
    """Refuse a network that cannot be real, or that this machine cannot hold in float32.

    Args:
        parameters: estimated from the configuration.
        weight_bytes: size of the weight files, where there are any: a weight takes a byte at least.

    Raises:
        UserError: with the numbers.
    """
    billions = f"{parameters / 1e9:.3g} billion weights"
    if parameters > MAX_PARAMETERS:
        raise UserError(
            f"the {part} configuration describes {billions}, more than {MAX_PARAMETERS / 1e9:g} billion: check its "
            "widths and layers."
        )
    if weight_bytes is not None and parameters > 2 * weight_bytes:
        raise UserError(
            f"the {part} configuration describes {billions}, but the weight files have {weight_bytes} bytes: give the "
            "configuration that belongs to them, or download the folder again."
        )
    memory = _memory_bytes()
    if memory is not None and 4 * parameters > memory:
        raise UserError(
            f"the {part} has {billions}, {4 * parameters / 2**30:.0f} GiB in float32, and this machine has "
            f"{memory / 2**30:.0f} GiB of memory: export it on a larger machine."
        )


def _memory_bytes() -> int | None:
    """Memory of this machine, or of the container where that is less; None where the system does not tell."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return memory
    return min(memory, int(limit)) if limit.isdigit() else memory


def is_finite_number(value: object) -> bool:
    """Whether a value from JSON is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
