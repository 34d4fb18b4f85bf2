"""The second column of the losses: products whose running sum is rounded to float16 after every 16 products."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from consisti2v_rt.export.engines import job, kernels
from consisti2v_rt.export.engines.bundle_engines import build_engines
from consisti2v_rt.export.events import Events
from consisti2v_rt.export.precision.recipe import VariantOptions, float16_accumulators
from consisti2v_rt.export.precision.simulation import write_simulation
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.gpu.device import GpuStatus

pytestmark = pytest.mark.slow

HALF = TensorProto.FLOAT16


def half(values: Any) -> Any:
    return np.asarray(values, np.float32).astype(np.float16).astype(np.float32)


def drawn(*shape: int, scale: float = 1.0, seed: int = 0) -> Any:
    return half(scale * np.random.default_rng(seed).standard_normal(shape))


def added_up(parts: Iterable[Any]) -> Any:
    total: Any = np.float32(0)
    for part in parts:
        total = half(total + part)
    return total


def product(a: Any, b: Any) -> Any:
    return added_up(a[..., k : k + 16] @ b[..., k : k + 16, :] for k in range(0, a.shape[-1], 16))


def convolution(x: Any, w: Any, stride: int, pads: list[int], dilation: int) -> Any:
    """x [n, c, h, w], w [o, c, kh, kw]; all taps of 16 channels, then of the next 16."""
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    high, wide = (
        (size - dilation * (k - 1) - 1) // stride + 1 for size, k in zip(padded.shape[2:], w.shape[2:], strict=True)
    )

    def parts() -> Iterable[Any]:
        for first in range(0, x.shape[1], 16):
            for i, j in itertools.product(*map(range, w.shape[2:])):
                rows = slice(i * dilation, i * dilation + stride * (high - 1) + 1, stride)
                columns = slice(j * dilation, j * dilation + stride * (wide - 1) + 1, stride)
                piece = padded[:, first : first + 16, rows, columns]
                yield np.einsum("ncij,oc->noij", piece, w[:, first : first + 16, i, j])

    return added_up(parts())


def attention(q: Any, k: Any, v: Any, mask: Any) -> Any:
    """Weights to the largest score so far, as the values are added up 16 keys at a time."""
    scores = q @ k.swapaxes(-1, -2) + mask
    largest, total, values = np.float32(-np.inf), np.float32(0), np.float32(0)
    for first in range(0, k.shape[2], 16):
        block = scores[..., first : first + 16]
        now = np.maximum(largest, block.max(-1, keepdims=True))
        weights, shrink = np.exp(block - now), np.exp(largest - now)
        total = total * shrink + weights.sum(-1, keepdims=True)
        values, largest = half(values * shrink + half(weights) @ v[:, :, first : first + 16]), now
    return values / total


X, W, B = drawn(2, 5, 200), drawn(200, 24, seed=1), drawn(24, seed=2)
IMAGE, FILTERS = drawn(2, 40, 9, 8), drawn(12, 40, 3, 2, seed=3)
Q, K, V = drawn(2, 3, 6, 16, scale=0.5), drawn(2, 3, 72, 16, scale=0.5, seed=4), drawn(2, 3, 72, 16, seed=5)
MASK = np.where(np.arange(72) % 3 == 0, np.float32(-1e4), np.float32(0)) * np.ones((6, 1), np.float32)
CASES: dict[str, Any] = {
    "MatMul": ([X, W], {}, product(X, W)),
    "Gemm": ([X[0], W.T.copy(), B], {"transB": 1}, product(X[0], W) + B),
    "Conv": (
        [IMAGE, FILTERS, drawn(12)],
        {"strides": [2, 2], "pads": [1, 0, 2, 1], "dilations": [2, 2]},
        convolution(IMAGE, FILTERS, 2, [1, 0, 2, 1], 2) + drawn(12)[:, None, None],
    ),
    "Attention": ([Q, K, V, half(MASK)], {"scale": 1.0}, attention(Q, K, V, half(MASK))),
    "Attention without a mask": ([Q, K, V], {"scale": 1.0}, attention(Q, K, V, np.float32(0))),
}


@pytest.mark.parametrize("case", CASES)
def test_the_running_sum_is_rounded_after_every_16_products(tmp_path: Path, relative_l2: Any, case: str) -> None:
    inputs, attributes, rounded = CASES[case]
    names = "abcd"[: len(inputs)]
    values = [helper.make_tensor_value_info(names[0], HALF, inputs[0].shape)]
    weights = [
        numpy_helper.from_array(array.astype(np.float16), name)
        for name, array in zip(names[1:], inputs[1:], strict=True)
    ]
    node = helper.make_node(case.split()[0], list(names), ["y"], name="only", **attributes)
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", HALF, rounded.shape)], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save_model(model, str(tmp_path / "g.onnx"))

    def run(float16_sums: bool) -> Any:
        path = tmp_path / f"simulation{float16_sums}.onnx"
        write_simulation(tmp_path / "g.onnx", path, HALF, float16_sums=float16_sums)
        options = onnxruntime.SessionOptions()
        skipped = ["FuseFp16InitializerToFp32NodeTransformer"]
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=skipped
        )
        return session.run(None, {"a": inputs[0]})[0]

    # Sums of 16 that are added in another order round otherwise here and there.
    assert relative_l2(run(True), half(rounded)) < 1e-4
    assert relative_l2(run(False), half(rounded)) > 3e-4


@pytest.fixture
def no_gpu_and_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "probe", lambda: GpuStatus(False, "no NVIDIA driver is installed"))
    monkeypatch.setattr(kernels, "CALL_KERNELS", ("noise",))


@pytest.mark.usefixtures("no_gpu_and_one_kernel")
def test_a_build_says_where_float16_accumulators_break_the_limit(bundle: Path) -> None:
    """The graph keeps a limit between the two columns, and only float32 accumulators do."""
    pytest.importorskip("tensorrt_rtx")
    stage, notices, reports = "vae_decoder", list[str](), list[Any]()
    events = Events(notice=notices.append, variant=reports.append)
    build_engines(bundle, "sm89", stages=[stage], events=events)
    entry = json.loads((bundle / "variants/fp16/losses.json").read_text())["stages"][stage]
    most, summed = max(entry["losses"], key=lambda loss: loss["relative_l2"]), entry["fp16_accumulators"]
    assert (summed["seed"], summed["rows"]) == (most["seed"], most["rows"])
    assert most["relative_l2"] < summed["relative_l2"] <= 5e-3 and not notices
    assert reports[0].fp16_accumulators == summed["relative_l2"]
    options = VariantOptions(max_loss=(most["relative_l2"] + summed["relative_l2"]) / 2)

    def warnings(accumulate: str) -> list[str]:
        (engine,) = build_engines(bundle, "sm89", stages=[stage], variant=options, accumulate=accumulate, events=events)
        warned: list[str] = json.loads(Bundle.open(bundle).file(engine.metadata).read_text())["warnings"]
        return warned

    assert not any("accumulate" in line for line in warnings("fp32")) and not notices
    found = warnings("auto")
    assert notices == [line for line in found if "--accumulate fp32 keeps the limit" in line] != []
    assert f"stage {stage} loses {summed['relative_l2']:.1e} relative L2" in notices[0]


def test_words() -> None:
    losses = {"seed": 0, "rows": None, "relative_l2": None}
    assert "overflows (allowed 5e-03)" in str(float16_accumulators({"fp16_accumulators": losses}, 5e-3))
    assert float16_accumulators({"fp16_accumulators": losses | {"relative_l2": 4e-3}}, 5e-3) is None
    assert float16_accumulators({"fp16_accumulators": losses}, None) is None and float16_accumulators({}, 5e-3) is None


@pytest.mark.rare
def test_graphs_without_the_second_column_are_checked_again(fp16_bundle: Path, tmp_path: Path) -> None:
    from consisti2v_rt.export.precision.recipe import RECIPES, is_current, recorded

    opened = Bundle.open(fp16_bundle, verify=False)
    for stage, entry in recorded(opened, "fp16").items():
        assert is_current(entry, opened.manifest, stage, RECIPES["fp16"], VariantOptions())
        del entry["fp16_accumulators"]
        assert not is_current(entry, opened.manifest, stage, RECIPES["fp16"], VariantOptions())
