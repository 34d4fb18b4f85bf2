"""What GPUs can do at best, each number with where it was read.

Tensor-core rates are dense, in FLOP per streaming multiprocessor and clock. On GeForce cards FP32 accumulation runs at
half the rate of FP16 accumulation; on Hopper at the same. FP32 itself is the plain cores' rate.

The roofline (Williams, Waterman and Patterson 2009): a piece of work takes at least as long as its FLOPs at the peak,
and at least as long as its traffic at the memory's bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...errors import UserError
from ...runtime.gpu.cards import closest, find_card
from . import graph as kinds
from .work import Work, Works

_GEFORCE = {("fp16", "fp16"): 1024, ("fp16", "fp32"): 512, ("fp32", "fp32"): 256}
_WITH_FP8 = {**_GEFORCE, ("fp8", "fp16"): 2048, ("fp8", "fp32"): 1024}
ARCHITECTURES: dict[str, dict[tuple[str, str], int]] = {
    # 107.6 TFLOP/s in FP16 of the 2080 Ti: its 68 multiprocessors at 1545 MHz. Half the plain cores of the later ones.
    "turing": {**_GEFORCE, ("fp32", "fp32"): 128},
    # Peaks of the cards below are these rates times multiprocessors times boost clock: 3060 51.0, 4090 330.3,
    # 5090 419.0 TFLOP/s in FP16 with FP16 accumulation (hmc-tech.com lists the same products).
    "ampere": _GEFORCE,
    "ada": _WITH_FP8,
    "blackwell": _WITH_FP8,
    # 989.4 TFLOP/s FP16 and 1978.9 FP8 at 1.83 GHz on 132 multiprocessors (glennklockwood.com/garden/processors/h100).
    "hopper": {
        **dict.fromkeys((("fp16", "fp16"), ("fp16", "fp32")), 4096),
        **dict.fromkeys((("fp8", "fp16"), ("fp8", "fp32")), 8192),
        ("fp32", "fp32"): 256,
    },
}
PRECISIONS = ("fp32", "fp16", "fp8")


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

    Args:
        name: in any spelling: "rtx-5090", "NVIDIA GeForce RTX 5090".
        power: limit in watts; None: 50 W on the laptop card, else the card's own.

    Raises:
        UserError: a number is missing, not positive, or outside the listed limits, or the architecture unknown.
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
    card, missing = find_card(name), ", ".join(flag for flag, value in given.items() if value is None)
    listed = None if card is None else card.performance
    if listed is None and missing:
        fault = f"GPU {name!r} is not in the table (docs/gpus.md){closest(name)}: choose one, or"
        if card is not None:
            fault = f"the table has no clock, bandwidth and memory of the {card.name}, and none are guessed:"
        raise UserError(f"{fault} give {missing}.")
    clock, source = (clock_ghz or 0.0) * 1e9, "given by flags"
    if listed is not None:
        source = f"{listed.source}; changed by flags" if any(given.values()) else listed.source
        # A given clock stands for any power limit.
        if clock_ghz is None:
            limits = list(listed.clocks)
            power = power if power is not None else 50.0 if len(limits) > 1 else limits[0]
            if not limits[0] <= power <= limits[-1]:
                span = " to ".join(f"{limit:g}" for limit in dict.fromkeys((limits[0], limits[-1])))
                raise UserError(
                    f"--power {power:g} is outside what {name} is listed with ({span} W): give --clock too."
                )
            clock = float(np.interp(power, limits, list(listed.clocks.values())))
    return Gpu(
        name if card is None else card.name,
        architecture or (listed.architecture if listed else ""),
        multiprocessors or (listed.multiprocessors if listed else 0),
        clock,
        bandwidth_gb * 1e9 if bandwidth_gb else listed.bandwidth if listed else 0.0,
        int(memory_gb * 2**30) if memory_gb else listed.memory if listed else 0,
        power,
        source,
    )


WIDTHS = {"fp32": 4, "fp16": 2, "fp8": 2}
"""Bytes of an activation; with FP8 the tensors between the products stay FP16."""

# Share of the peak with FP32 accumulation that products reach, each node a kernel of its own. Assumed, not measured.
# What they stand on: SD 2.1's U-Net at 512 pixels and batch 2, 1.609 TFLOP by torch's counter, ran on an RTX 4090
# (165 TFLOP/s with FP32 accumulation) at 27.1 it/s in torch eager, 38.2 compiled and 71.6 in AITemplate: 26 %, 37 %
# and 70 % of that peak over the whole network, norms and movement included.
STATED_EFFICIENCY = {
    kinds.CONV_3X3: 0.45,
    kinds.CONV_1X1: 0.4,
    kinds.TEMPORAL_CONV: 0.35,
    kinds.RESAMPLING: 0.4,
    **dict.fromkeys((kinds.LINEAR, kinds.FEED_FORWARD, kinds.ATTENTION_PROJECTION), 0.5),
    kinds.EMBEDDING: 0.1,
    kinds.SELF_ATTENTION: 0.35,
    # 16 queries a position fill a tensor core's tile badly.
    kinds.TEMPORAL_ATTENTION: 0.1,
    kinds.TEXT_ATTENTION: 0.25,
}
STATED_BANDWIDTH = 0.6
"""Share of the memory's bandwidth, for everything."""
STATED_LAUNCH = 3e-6
"""Seconds from one kernel to the next."""
_ATTENTIONS = (kinds.SELF_ATTENTION, kinds.TEMPORAL_ATTENTION, kinds.TEXT_ATTENTION)


@dataclass(frozen=True)
class Machine:
    """A GPU and the arithmetic used on it."""

    gpu: Gpu
    precision: str
    accumulation: str
    """Width of the accumulator: fp16 or fp32."""

    def peak(self, kind: str) -> float:
        """FLOP/s; attention stays FP16 beside FP8 products."""
        precision = "fp16" if self.precision == "fp8" and kind in _ATTENTIONS else self.precision
        return self.gpu.peak(precision, self.accumulation)

    def weight_width(self, kind: str) -> int:
        """Bytes of a weight: FP8 where products take it."""
        return 1 if self.precision == "fp8" and kind in STATED_EFFICIENCY else WIDTHS[self.precision]

    def traffic(self, work: Work) -> int:
        """Bytes through memory."""
        return work.weights * self.weight_width(work.kind) + (work.read + work.written) * WIDTHS[self.precision]

    def floor(self, work: Work) -> float:
        """Seconds at both peaks."""
        return max(work.flops / self.peak(work.kind), self.traffic(work) / self.gpu.bandwidth)

    def stated(self, work: Work) -> float:
        """Seconds at the stated efficiencies."""
        compute = work.flops / (STATED_EFFICIENCY[work.kind] * self.peak(work.kind)) if work.flops else 0.0
        return max(compute, self.traffic(work) / (STATED_BANDWIDTH * self.gpu.bandwidth)) + STATED_LAUNCH


def seconds_by_kind(works: Works, seconds: Callable[[Work], float]) -> dict[str, float]:
    """Sums by kind of :meth:`Machine.floor` or :meth:`Machine.stated`."""
    found: dict[str, float] = {}
    for work, count in works.items():
        found[work.kind] = found.get(work.kind, 0.0) + seconds(work) * count
    return found
