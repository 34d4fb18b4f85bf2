"""Time every rewrite of the OpenVINO session by itself: parts of the full U-Net as exported, and rewritten, in turns.

``python -m consisti2v_rt.benchmarks.rewrites_on_processor --output rewrites.json`` makes the record
``benchmarks/results/rewrites_cpu.json``; docs/processor.md has its table. Needs the extras ``openvino`` and ``bench``
and about 2 GiB.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..runtime.commands.console import make_console
from ..runtime.openvino.interleaving import use_sums_for_interleaving
from ..runtime.openvino.phase_convolutions import use_shared_phases
from ..runtime.openvino.session import HINTS, runtime
from ..runtime.openvino.spatial_winograd import use_spatial_winograd
from ..runtime.openvino.split_products import split_products
from ..runtime.openvino.temporal_winograd import use_temporal_winograd
from .bench.intervals import ratio_words
from .bench.machine import describe_machine, versions
from .bench.script import run_script
from .bench.statistics import ratio_interval

FRAMES, BRANCHES = 16, 2  # of 256x256 pixels with text guidance
LEVELS = ((320, 32), (640, 16), (1280, 8), (1280, 4))


def draw(*shape: int, seed: int = 1, scale: float = 1.0) -> Any:
    """Normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(scale)


def convolution(op: Any, x: Any, kernel: tuple[int, int] = (3, 3)) -> Any:
    channels, edges = x.get_output_shape(0)[1], [size // 2 for size in kernel]
    weights = draw(channels, channels, *kernel, scale=(channels * kernel[0] * kernel[1]) ** -0.5)
    return op.convolution(x, op.constant(weights), [1, 1], edges, edges, [1, 1])


def upsampling(op: Any, x: Any) -> Any:
    """Four 2x2 convolutions of a 3x3 kernel's taps, added where they meet the same pixel; then the pixels' shuffle."""
    rows, channels, height, width = x.get_output_shape(0)
    kernel, phases = draw(channels, channels, 3, 3, scale=(9 * channels) ** -0.5), []
    meets = np.array([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], np.float32)
    edges = np.array([0, 0, 1, 1])
    padded = op.pad(x, edges, edges, "constant", op.constant(np.float32(0)))
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        taps = np.einsum("au,bv,oiuv->oiab", meets[row], meets[column], kernel)
        cut = op.slice(padded, np.array([row]), np.array([row + height + 1]), np.array([1]), np.array([2]))
        cut = op.slice(cut, np.array([column]), np.array([column + width + 1]), np.array([1]), np.array([3]))
        phase = op.convolution(cut, op.constant(taps), [1, 1], [0, 0], [0, 0], [1, 1])
        phases.append(op.unsqueeze(phase, np.array([2])))
    stacked = op.reshape(op.concat(phases, 2), np.array([rows, 4 * channels, height, width]), False)
    return op.depth_to_space(stacked, "depth_first", 2)


def geglu(op: Any, x: Any) -> Any:
    channels = x.get_output_shape(0)[-1]
    weights = op.constant(draw(8 * channels, channels, scale=channels**-0.5))
    product = op.add(op.matmul(x, weights, False, True), op.constant(draw(8 * channels, seed=2)))
    value, gate = op.split(product, op.constant(np.array(3, np.int64)), 2).outputs()
    return op.multiply(value, op.gelu(gate, "erf"))


def rotary_pairs(op: Any, x: Any) -> Any:
    """The two channels of a pair, each from one element-wise kernel, side by side."""
    pair = [op.multiply(x, op.constant(np.float32(factor))) for factor in (0.6, 0.8)]
    return op.concat([op.unsqueeze(part, np.array([-1])) for part in pair], -1)


@dataclass(frozen=True)
class Part:
    """A part of the graph: its name, the shape of its input, the node behind that, and the rewrite, in place."""

    name: str
    shape: tuple[int, ...]
    build: Callable[[Any, Any], Any]
    rewrite: Callable[[Any], int]

    def model(self) -> Any:
        """The part as an ``openvino.Model`` of its own; the same weights every time."""
        from openvino import Model, opset13

        x = opset13.parameter(list(self.shape), np.float32)
        return Model([opset13.result(self.build(opset13, x))], [x])


_ROWS = FRAMES * BRANCHES
_KINDS: dict[str, tuple[Any, ...]] = {
    "3x3 convolution": (LEVELS, lambda c, n: (_ROWS, c, n, n), convolution, use_spatial_winograd),
    "convolution along the frames": (
        LEVELS,
        lambda c, n: (BRANCHES, c, FRAMES, n * n),
        partial(convolution, kernel=(3, 1)),
        use_temporal_winograd,
    ),
    "upsampling and its convolution": (LEVELS[1:], lambda c, n: (_ROWS, c, n, n), upsampling, use_shared_phases),
    "GEGLU": (LEVELS[:3], lambda c, n: (BRANCHES, FRAMES, n * n, c), geglu, split_products),
    "joining of rotary pairs": (
        LEVELS[:3],
        lambda c, n: (BRANCHES, FRAMES, n * n, c // 4),
        rotary_pairs,
        use_sums_for_interleaving,
    ),
}
PARTS = [
    Part(
        f"{kind}, {c} channels, {n}x{n}" + (f" to {2 * n}x{2 * n}" if build is upsampling else ""),
        shape(c, n),
        build,
        rewrite,
    )
    for kind, (levels, shape, build, rewrite) in _KINDS.items()
    for c, n in levels
]


def measure_part(part: Part, rounds: int) -> dict[str, Any]:
    """Milliseconds of both in every round, and the distance of their outputs."""
    openvino, x = runtime(), draw(*part.shape, seed=7)
    models = part.model(), part.model()
    changed, requests = part.rewrite(models[1]), []
    for model in models:
        config = {"INFERENCE_PRECISION_HINT": HINTS["fp32"], "PERFORMANCE_HINT": "LATENCY"}
        requests.append(openvino.Core().compile_model(model, "CPU", config).create_infer_request())
        requests[-1].set_input_tensor(0, openvino.Tensor(x, shared_memory=True))
        requests[-1].infer()
    samples: list[list[float]] = [[], []]
    for _ in range(rounds):
        for request, milliseconds in zip(requests, samples, strict=True):
            started = time.perf_counter()
            request.infer()
            milliseconds.append(1000 * (time.perf_counter() - started))
    expected, got = (np.asarray(request.get_output_tensor(0).data, np.float64) for request in requests)
    return {
        "part": part.name,
        "rewritten": changed,
        "direct_ms": samples[0],
        "rewritten_ms": samples[1],
        "speed_up": statistics.median(samples[0]) / statistics.median(samples[1]),
        "relative_l2": float(np.linalg.norm(got - expected) / np.linalg.norm(expected)),
    }


def main(
    output: Annotated[Path | None, typer.Option(help="JSON file for the record.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of each.")] = 7,
) -> None:
    """Time every rewrite of the OpenVINO session against the part of the graph as exported."""
    what = "parts of the full U-Net in OpenVINO, as exported and rewritten, float32, in turns"

    def measure() -> dict[str, Any]:
        machine = {"what": what, "machine": describe_machine(), "versions": versions(), "rounds": rounds}
        return machine | {"parts": [measure_part(part, rounds) for part in PARTS]}

    console = make_console(soft_wrap=True)
    run_script(output, measure, lambda record: console.print(*map(row, record["parts"]), sep="\n"))


def row(part: dict[str, Any]) -> str:
    """The part as a row of the table in docs/processor.md; rounds are paired."""
    direct, rewritten = (f"{statistics.median(part[key]):.1f} ms" for key in ("direct_ms", "rewritten_ms"))
    interval = ratio_words(ratio_interval(part["direct_ms"], part["rewritten_ms"], paired=True))
    cells = (part["part"], direct, rewritten, f"{part['speed_up']:.2f}x ({interval})", f"{part['relative_l2']:.1e}")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    typer.run(main)
