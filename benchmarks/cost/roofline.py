"""Time of counted work on a GPU: the roofline floor, and the same at stated efficiencies.

The roofline (Williams, Waterman and Patterson 2009): a piece of work takes at least as long as its FLOPs at the peak,
and at least as long as its traffic at the memory's bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import kinds
from .gpus import Gpu
from .stage_costs import Work

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
    kinds.LINEAR: 0.5,
    kinds.FEED_FORWARD: 0.5,
    kinds.ATTENTION_PROJECTION: 0.5,
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

    def traffic(self, work: Work) -> int:
        """Bytes through memory."""
        return work.weights * self.weight_width(work.kind) + (work.read + work.written) * WIDTHS[self.precision]

    def weight_width(self, kind: str) -> int:
        """Bytes of a weight: FP8 where products take it."""
        return 1 if self.precision == "fp8" and kind in STATED_EFFICIENCY else WIDTHS[self.precision]

    def floor(self, work: Work) -> float:
        """Seconds at both peaks."""
        return max(work.flops / self.peak(work.kind), self.traffic(work) / self.gpu.bandwidth)

    def stated(self, work: Work) -> float:
        """Seconds at the stated efficiencies."""
        compute = work.flops / (STATED_EFFICIENCY[work.kind] * self.peak(work.kind)) if work.flops else 0.0
        return max(compute, self.traffic(work) / (STATED_BANDWIDTH * self.gpu.bandwidth)) + STATED_LAUNCH


def floor_by_kind(works: dict[Work, int], machine: Machine) -> dict[str, float]:
    """Seconds at the peaks, by kind."""
    seconds: dict[str, float] = {}
    for work, count in works.items():
        seconds[work.kind] = seconds.get(work.kind, 0.0) + machine.floor(work) * count
    return seconds


def stated_by_kind(works: dict[Work, int], machine: Machine) -> dict[str, float]:
    """Seconds at the stated efficiencies, by kind."""
    seconds: dict[str, float] = {}
    for work, count in works.items():
        seconds[work.kind] = seconds.get(work.kind, 0.0) + machine.stated(work) * count
    return seconds
