"""What GPUs can do at best, each number with where it was read.

Tensor-core rates are dense, in FLOP per streaming multiprocessor and clock. On GeForce cards FP32 accumulation runs at
half the rate of FP16 accumulation; on Hopper at the same. FP32 itself is the plain cores' rate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...errors import UserError
from ...runtime.gpu.cards import Performance, closest, find_card

_GIB = 2**30
_GEFORCE = {("fp16", "fp16"): 1024, ("fp16", "fp32"): 512, ("fp32", "fp32"): 256}
ARCHITECTURES: dict[str, dict[tuple[str, str], int]] = {
    # 107.6 TFLOP/s in FP16 of the 2080 Ti: its 68 multiprocessors at 1545 MHz. Half the plain cores of the later ones.
    "turing": {**_GEFORCE, ("fp32", "fp32"): 128},
    # Peaks of the cards below are these rates times multiprocessors times boost clock: 3060 51.0, 4090 330.3,
    # 5090 419.0 TFLOP/s in FP16 with FP16 accumulation (hmc-tech.com lists the same products).
    "ampere": _GEFORCE,
    "ada": {**_GEFORCE, ("fp8", "fp16"): 2048, ("fp8", "fp32"): 1024},
    "blackwell": {**_GEFORCE, ("fp8", "fp16"): 2048, ("fp8", "fp32"): 1024},
    # 989.4 TFLOP/s FP16 and 1978.9 FP8 at 1.83 GHz on 132 multiprocessors (glennklockwood.com/garden/processors/h100).
    "hopper": {
        ("fp16", "fp16"): 4096,
        ("fp16", "fp32"): 4096,
        ("fp8", "fp16"): 8192,
        ("fp8", "fp32"): 8192,
        ("fp32", "fp32"): 256,
    },
}
PRECISIONS = ("fp32", "fp16", "fp8")
ACCUMULATIONS = ("fp16", "fp32")


@dataclass(frozen=True)
class Gpu:
    """One GPU at one power limit."""

    name: str
    architecture: str
    multiprocessors: int
    clock: float
    """Boost clock under the power limit, Hz. Sustained clocks of long runs are lower."""
    bandwidth: float
    """Bytes a second."""
    memory: int
    """Bytes."""
    power: float | None
    """Watts; None where it is not known."""
    source: str

    def peak(self, precision: str, accumulation: str) -> float:
        """Dense FLOP/s.

        Raises:
            UserError: the GPU has no such arithmetic.
        """
        rates = ARCHITECTURES[self.architecture]
        # Only tensor cores know a narrower accumulator.
        key = (precision, "fp32" if precision == "fp32" else accumulation)
        if key not in rates:
            choice = ", ".join(sorted({known for known, _ in rates}))
            raise UserError(f"{self.name} has no {precision} arithmetic: choose --precision from {choice}.")
        return rates[key] * self.multiprocessors * self.clock


def find_gpu(name: str, power: float | None = None) -> Gpu:
    """A card of the table at a power limit in watts; without one at 50 W on the laptop card, else at its own.

    Args:
        name: in any spelling: "rtx-5090", "NVIDIA GeForce RTX 5090".

    Raises:
        UserError: no such card, one without published numbers, or a limit outside the listed ones.
    """
    label, numbers = _performance(name, "--architecture, --sm, --clock, --bandwidth, --memory")
    limits = list(numbers.clocks)
    if power is None:
        power = 50.0 if len(limits) > 1 else limits[0]
    if not limits[0] <= power <= limits[-1]:
        span = f"{limits[0]:g} W" if len(limits) == 1 else f"{limits[0]:g} to {limits[-1]:g} W"
        raise UserError(f"--power {power:g} is outside what {label} is listed with ({span}): give --clock too.")
    return Gpu(
        label,
        numbers.architecture,
        numbers.multiprocessors,
        _between(numbers.clocks, power),
        numbers.bandwidth,
        numbers.memory,
        power,
        numbers.source,
    )


def _performance(name: str, flags: str) -> tuple[str, Performance]:
    """The card's name for people and its published numbers.

    Raises:
        UserError: there is no such card or there are no such numbers; `flags` can be given instead.
    """
    card = find_card(name)
    if card is None:
        raise UserError(f"GPU {name!r} is not in the table (docs/gpus.md){closest(name)}: choose one, or give {flags}.")
    if card.performance is None:
        raise UserError(
            f"the table has no clock, bandwidth and memory of the {card.name}, and none are guessed: give {flags}."
        )
    return card.name, card.performance


def describe_gpu(
    name: str,
    power: float | None = None,
    *,
    architecture: str | None = None,
    multiprocessors: int | None = None,
    clock_ghz: float | None = None,
    bandwidth_gb: float | None = None,
    memory_gb: float | None = None,
) -> Gpu:
    """A GPU of the table with some numbers replaced, or any other with all of them given.

    Raises:
        UserError: a number is missing, not positive, or the architecture unknown.
    """
    given = {
        "--architecture": architecture,
        "--sm": multiprocessors,
        "--clock": clock_ghz,
        "--bandwidth": bandwidth_gb,
        "--memory": memory_gb,
    }
    for flag, value in given.items():
        if isinstance(value, (int, float)) and not 0 < value < float("inf"):
            raise UserError(f"{flag} must be a positive number, not {value:g}.")
    if architecture is not None and architecture not in ARCHITECTURES:
        raise UserError(f"--architecture must be one of {', '.join(ARCHITECTURES)}, not {architecture!r}.")
    missing = [flag for flag, value in given.items() if value is None]
    card = find_card(name)
    if card is not None and card.performance is not None:
        # A given clock stands for any power limit.
        gpu = find_gpu(name, None if clock_ghz is not None else power)
    else:
        if missing:
            _performance(name, f"{', '.join(missing)} too")
        gpu = Gpu(name if card is None else card.name, "", 0, 0.0, 0.0, 0, power, "")
    changes: dict[str, object] = {}
    if architecture is not None:
        changes["architecture"] = architecture
    if multiprocessors is not None:
        changes["multiprocessors"] = multiprocessors
    if clock_ghz is not None:
        changes |= {"clock": clock_ghz * 1e9, "power": power}
    if bandwidth_gb is not None:
        changes["bandwidth"] = bandwidth_gb * 1e9
    if memory_gb is not None:
        changes["memory"] = int(memory_gb * _GIB)
    if changes:
        changes["source"] = f"{gpu.source}; changed by flags" if gpu.source else "given by flags"
    return replace(gpu, **changes)  # type: ignore[arg-type]


def _between(clocks: dict[float, float], power: float) -> float:
    """Clock at a power limit, on straight lines between the listed ones."""
    limits = list(clocks)
    if power in clocks:
        return clocks[power]
    above = next(index for index, limit in enumerate(limits) if limit > power)
    low, high = limits[above - 1], limits[above]
    share = (power - low) / (high - low)
    return clocks[low] + share * (clocks[high] - clocks[low])
