"""The convolution behind an upsampling by 9 products instead of 16: where it is one, and only there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from consisti2v_rt.runtime.openvino.phase_convolutions import use_shared_phases

openvino = pytest.importorskip("openvino")
op = openvino.opset13

Kernels = list[np.ndarray]


def draw(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def phase_kernels(kernel: np.ndarray) -> Kernels:
    """[c_out, c_in, 3, 3] -> the four 2x2 kernels of the phases, row-major."""

    def halves(taps: np.ndarray, axis: int) -> Kernels:
        first, middle, last = (np.take(taps, index, axis) for index in range(3))
        return [np.stack([first, middle + last], axis), np.stack([first + middle, last], axis)]

    return [phase for row in halves(kernel, 2) for phase in halves(row, 3)]


def upsampling(x: np.ndarray, kernels: Kernels, biases: list[np.ndarray | None], **changes: Any) -> Any:
    """The graph as the export writes it: pad, cut, four convolutions, shuffle of pixels."""

    def ints(*values: int) -> Any:
        return op.constant(np.array(values, np.int64))

    rows, _, height, width = x.shape
    parameter = op.parameter(list(x.shape), np.float32)
    zero = op.constant(np.float32(changes.get("outside", 0)))
    padded = op.pad(parameter, ints(0, 0, 1, 1), ints(0, 0, 1, 1), "constant", zero)
    phases = []
    for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        row, column = divmod(changes.get("order", [0, 1, 2, 3])[number], 2)
        cut = op.slice(padded, ints(row), ints(row + height + 1), ints(1), ints(2))
        cut = op.slice(cut, ints(column), ints(column + width + 1), ints(1), ints(3))
        phase = op.convolution(cut, op.constant(kernel), [1, 1], [0, 0], [0, 0], [1, 1])
        phase = phase if bias is None else op.add(phase, op.constant(bias.reshape(1, -1, 1, 1)))
        phases.append(op.unsqueeze(phase, ints(2)))
    stacked = op.reshape(op.concat(phases, 2), ints(rows, 4 * len(kernels[0]), height, width), False)
    shuffled = op.depth_to_space(stacked, changes.get("mode", "depth_first"), 2)
    return openvino.Model([op.result(shuffled)], [parameter])


def output(model: Any, x: np.ndarray) -> np.ndarray:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([x])[0].copy()


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (1, 7)])
@pytest.mark.parametrize("bias", [True, False])
def test_phases_share_their_products(relative_l2, size, bias):
    x, kernel = draw(16, 64, *size), draw(80, 64, 3, 3, seed=2)
    biases = [draw(80, seed=3) if bias else None] * 4
    direct, changed = (upsampling(x, phase_kernels(kernel), biases) for _ in range(2))
    assert use_shared_phases(changed) == 1
    names = [node.get_type_name() for node in changed.get_ordered_ops()]
    assert "Convolution" not in names and names.count("MatMul") == 9 + 4
    assert relative_l2(output(changed, x), output(direct, x)) < 5e-6


@pytest.mark.parametrize(
    "case",
    ["four kernels of their own", "other biases", "ones around", "phases swapped", "depth last", "few", "narrow"],
)
def test_other_shuffles_are_left_alone(case):
    channels = 32 if case == "narrow" else 64
    x, kernel = draw(3 if case == "few" else 16, channels, 4, 4), draw(80, channels, 3, 3, seed=2)
    kernels, biases, changes = phase_kernels(kernel), [draw(80, seed=3)] * 4, {}  # type: Kernels, Any, dict[str, Any]
    if case == "four kernels of their own":
        kernels[3] = draw(80, channels, 2, 2, seed=4)
    elif case == "other biases":
        biases = [draw(80, seed=seed) for seed in range(4)]
    elif case == "ones around":
        changes["outside"] = 1
    elif case == "phases swapped":
        changes["order"] = [0, 2, 1, 3]
    elif case == "depth last":
        changes["mode"] = "blocks_first"
    model = upsampling(x, kernels, biases, **changes)
    assert use_shared_phases(model) == 0
