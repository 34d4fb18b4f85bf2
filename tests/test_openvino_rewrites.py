"""Rewrites of a graph before OpenVINO compiles it: exact algebra, taken where it gains, left where it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from consisti2v_rt.runtime.openvino.interleaving import use_sums_for_interleaving
from consisti2v_rt.runtime.openvino.minimal_filtering import F2, F4
from consisti2v_rt.runtime.openvino.rewrites import fold_constants, rewrite
from consisti2v_rt.runtime.openvino.spatial_winograd import use_spatial_winograd
from consisti2v_rt.runtime.openvino.split_products import split_products
from consisti2v_rt.runtime.openvino.temporal_winograd import use_temporal_winograd

openvino = pytest.importorskip("openvino")
op = openvino.opset13
Build = Callable[[Any], Any]


def draw(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def model_of(build: Build, x: np.ndarray) -> Any:
    """The graph of `build(parameter)`, and nothing else, for inputs like `x`."""
    parameter = op.parameter(list(x.shape), np.float32)
    results = build(parameter)
    return openvino.Model(results if isinstance(results, list) else [results], [parameter])


def outputs(model: Any, x: np.ndarray) -> list[np.ndarray]:
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [value.copy() for value in compiled([x]).values()]


def kinds(model: Any) -> list[str]:
    return [node.get_type_name() for node in model.get_ordered_ops()]


@pytest.mark.parametrize("filtering", [F2, F4], ids=["F(2,3)", "F(4,3)"])
def test_filtering_is_exact_algebra(filtering):
    taps, inputs = np.array([2.0, -3.0, 5.0]), np.arange(1.0, filtering.outputs + 3) ** 2
    products = (filtering.kernel_matrix @ taps) * (filtering.input_matrix @ inputs)
    expected = np.correlate(inputs, taps, mode="valid")
    np.testing.assert_allclose(filtering.output_matrix @ products, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("height", "width", "options", "rewritten"),
    [
        (16, 20, {}, 1),
        (8, 8, {"rows": 16}, 1),
        (6, 10, {"rows": 5}, 1),
        (4, 4, {"rows": 16}, 1),
        (8, 9, {}, 0),
        (8, 8, {"rows": 15}, 0),
        (4, 4, {"rows": 15}, 0),
        (16, 16, {"strides": [2, 2]}, 0),
        (16, 16, {"pads": [0, 0]}, 0),
        (16, 16, {"channels": 32}, 0),
    ],
    ids=[
        "F(4,3)",
        "F(4,3) of small maps",
        "F(2,3)",
        "many small",
        "odd",
        "few",
        "few small",
        "stride 2",
        "no padding",
        "narrow",
    ],
)
def test_3x3_convolutions_are_rewritten_where_they_gain(relative_l2, height, width, options, rewritten):
    channels = options.get("channels", 64)
    x, kernel = draw(options.get("rows", 4), channels, height, width), draw(96, channels, 3, 3, seed=2)
    pads = options.get("pads", [1, 1])

    def build(parameter: Any) -> Any:
        return op.convolution(parameter, op.constant(kernel), options.get("strides", [1, 1]), pads, pads, [1, 1])

    direct, changed = model_of(build, x), model_of(build, x)
    assert use_spatial_winograd(changed) == rewritten
    assert ("Convolution" in kinds(changed)) == (not rewritten)
    assert relative_l2(outputs(changed, x)[0], outputs(direct, x)[0]) < 1e-5


@pytest.mark.parametrize(
    ("clips", "frames", "positions", "options", "rewritten"),
    [
        (2, 16, 9, {}, 1),
        (1, 8, 35, {}, 1),
        (3, 4, 64, {}, 1),
        (2, 6, 64, {}, 0),
        (2, 16, 4, {}, 0),
        (5, 16, 64, {}, 1),
        (2, 16, 64, {"pads": [0, 0]}, 0),
        (2, 16, 64, {"channels": 32}, 0),
    ],
    ids=["two clips", "one clip", "one tile", "6 frames", "few positions", "many clips", "no padding", "narrow"],
)
def test_temporal_convolutions_are_rewritten_where_they_gain(relative_l2, clips, frames, positions, options, rewritten):
    channels, pads = options.get("channels", 64), options.get("pads", [1, 0])
    x, kernel = draw(clips, channels, frames, positions), draw(80, channels, 3, 1, seed=2)

    def build(parameter: Any) -> Any:
        return op.convolution(parameter, op.constant(kernel), [1, 1], pads, pads, [1, 1])

    direct, changed = model_of(build, x), model_of(build, x)
    assert use_temporal_winograd(changed) == rewritten
    assert ("Convolution" in kinds(changed)) == (not rewritten)
    assert relative_l2(outputs(changed, x)[0], outputs(direct, x)[0]) < 1e-5


def _geglu(parameter: Any, *, bias: bool, transposed: bool, mode: str = "erf", swapped: bool = False) -> Any:
    weight, offsets = draw(64, 24, seed=2), draw(1, 1, 64, seed=3)
    product = op.matmul(parameter, op.constant(weight if transposed else weight.T.copy()), False, transposed)
    if bias:
        product = op.add(op.constant(offsets), product) if swapped else op.add(product, op.constant(offsets))
    value, gate = op.split(product, op.constant(np.array(2, np.int64)), 2).outputs()
    return op.multiply(op.gelu(gate, mode), value) if swapped else op.multiply(value, op.gelu(gate, mode))


@pytest.mark.parametrize(
    "options",
    [
        {"bias": True, "transposed": True},
        {"bias": True, "transposed": False, "swapped": True},
        {"bias": False, "transposed": True, "mode": "tanh"},
    ],
    ids=["as exported", "operands swapped", "no bias, tanh"],
)
def test_a_geglu_becomes_two_products(relative_l2, options):
    x = draw(2, 5, 24)
    direct, changed = (model_of(lambda p: _geglu(p, **options), x) for _ in range(2))
    assert split_products(changed) == 1
    assert "Split" not in kinds(changed) and kinds(changed).count("MatMul") == 2
    assert relative_l2(outputs(changed, x)[0], outputs(direct, x)[0]) < 1e-6


def test_halves_that_others_read_become_two_products(relative_l2):
    x, weight = draw(2, 5, 24), draw(64, 24, seed=2)

    def build(parameter: Any) -> Any:
        product = op.matmul(parameter, op.constant(weight), False, True)
        first, second = op.variadic_split(
            product, op.constant(np.array(-1, np.int64)), op.constant(np.array([32, 32], np.int64))
        ).outputs()
        return [op.result(op.sin(first)), op.result(op.multiply(first, second))]

    direct, changed = model_of(build, x), model_of(build, x)
    assert split_products(changed) == 1 and "VariadicSplit" not in kinds(changed)
    for got, expected in zip(outputs(changed, x), outputs(direct, x), strict=True):
        assert relative_l2(got, expected) < 1e-6


def _pairs(parameter: Any, *, stops: tuple[int, int] = (1, 2), step: int = 1) -> list[Any]:
    weight, offsets = draw(64, 24, seed=2), draw(64, seed=3)
    product = op.add(op.matmul(parameter, op.constant(weight), False, True), op.constant(offsets))
    pairs = op.reshape(product, op.constant(np.array([2, 5, 32, 2], np.int64)), False)
    even, odd = (
        op.slice(pairs, *(op.constant(np.array([value], np.int64)) for value in (start, stop, step, -1)))
        for start, stop in zip((0, 1), stops, strict=True)
    )
    return [op.result(op.sin(even)), op.result(op.multiply(even, odd))]


def test_even_and_odd_channels_become_two_products(relative_l2):
    x = draw(2, 5, 24)
    direct, changed = model_of(_pairs, x), model_of(_pairs, x)
    assert split_products(changed) == 1 and "Slice" not in kinds(changed)
    for got, expected in zip(outputs(changed, x), outputs(direct, x), strict=True):
        assert got.shape == expected.shape and relative_l2(got, expected) < 1e-6


def test_pairs_that_are_read_otherwise_are_left_alone():
    changed = model_of(lambda parameter: _pairs(parameter, stops=(2, 2), step=1), draw(2, 5, 24))
    assert split_products(changed) == 0 and "Slice" in kinds(changed)


@pytest.mark.parametrize("case", ["unequal", "another axis", "product read elsewhere", "no constant weight"])
def test_other_cuts_are_left_alone(relative_l2, case):
    x, weight = draw(2, 24, 24), draw(64, 24, seed=2)

    def build(parameter: Any) -> Any:
        other = op.constant(weight) if case != "no constant weight" else parameter
        product = op.matmul(parameter, other, False, True)
        last = product.get_output_shape(0)[-1]
        axis, lengths = (1, [12, 12]) if case == "another axis" else (2, [last // 2, last // 2])
        if case == "unequal":
            lengths = [lengths[0] - 1, lengths[1] + 1]
        first, second = op.variadic_split(
            product, op.constant(np.array(axis, np.int64)), op.constant(np.array(lengths, np.int64))
        ).outputs()
        results = [op.result(op.sin(first)), op.result(op.cos(second))]
        return [*results, op.result(op.exp(product))] if case == "product read elsewhere" else results

    changed = model_of(build, x)
    before = kinds(changed)
    assert split_products(changed) == 0 and kinds(changed) == before


def test_reduced_precision_keeps_direct_convolutions():
    x, kernel = draw(4, 64, 16, 16), draw(64, 64, 3, 3, seed=2)
    for winograd, expected in ((True, 1), (False, None)):
        model = model_of(lambda p: op.convolution(p, op.constant(kernel), [1, 1], [1, 1], [1, 1], [1, 1]), x)
        assert rewrite(model, winograd=winograd).get("spatial_winograd") == expected


def test_kernels_that_the_graph_slices_are_found():
    x, kernel = draw(2, 64, 16, 16), draw(64, 64, 3, 1, 1, seed=2)

    def build(parameter: Any) -> Any:
        taps = op.squeeze(op.constant(kernel), op.constant(np.array([4], np.int64)))
        return op.convolution(parameter, taps, [1, 1], [1, 0], [1, 0], [1, 1])

    model = model_of(build, x)
    fold_constants(model)
    assert rewrite(model, winograd=True)["temporal_winograd"] == 1


def test_interleaving_becomes_a_sum(relative_l2):
    x = draw(2, 3, 8)

    def build(parameter: Any, axis: int = -1) -> Any:
        last = op.constant(np.array([-1], np.int64))
        parts = [op.unsqueeze(part, last) for part in (op.sin(parameter), op.cos(parameter))]
        return op.concat(parts, axis)

    direct, changed = model_of(build, x), model_of(build, x)
    assert use_sums_for_interleaving(changed) == 1 and "Concat" not in kinds(changed)
    got, expected = outputs(changed, x)[0], outputs(direct, x)[0]
    assert got.shape == (2, 3, 8, 2) and relative_l2(got, expected) < 1e-6
    assert use_sums_for_interleaving(model_of(lambda parameter: build(parameter, axis=2), x)) == 0
