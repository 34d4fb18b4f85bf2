"""Magnitudes beyond float16's largest number, 65504, as Stable Diffusion's VAE decoder has them on some pictures.

The weights of the last level are scaled; the normalisation behind it takes the scale out again, so that the image
stays what it was. The graphs run as :mod:`~consisti2v_rt.export.precision.simulation` writes them: ONNX Runtime itself
computes float16 in float32 in places, where an overflow would not show.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consisti2v_rt.export.precision.conversion import convert
from consisti2v_rt.export.precision.recipe import RECIPES
from consisti2v_rt.export.precision.simulation import write_simulation
from consisti2v_rt.export.precision.validation import _widened
from consisti2v_rt.export.precision.variant import write_variant
from consisti2v_rt.runtime import backends
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.stage_graphs import stage_graph
from consisti2v_rt.runtime.session import OnnxCpuSession
from consisti2v_rt.runtime.stages import Stages

LAST_LEVEL = (
    "up_blocks.2.upsamplers.0.conv",
    "up_blocks.3.resnets.0.conv2",
    "up_blocks.3.resnets.1.conv2",
)
"""What adds up to the residual sums of the last level; at factor 1 each is at most 3.9, and their sum 4.9."""
STAGE, SHAPE = "vae_decoder", (1, 4, 16, 16, 16)
LARGEST = 65504


def scaled(bundle: Path, change_weight: Any, factor: float) -> Path:
    for name in LAST_LEVEL:
        change_weight(bundle, STAGE, f"vae.decoder.{name}.weight", factor)
    return bundle


def largest_sum(bundle: Path, latents: Any) -> float:
    """Of the last level's residual sums, in float32."""
    import onnx
    import onnxruntime

    model = onnx.load(str(bundle / STAGE / f"{STAGE}.onnx"))
    sums = [node.output[0] for node in model.graph.node if node.op_type == "Add"][-2:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in sums)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return max(float(np.abs(values).max()) for values in session.run(sums, {"latents": latents}))


def random_latents(scale: float = 1.0) -> Any:
    return scale * np.random.default_rng(0).standard_normal((1, 4, 16, 16), dtype=np.float32)


@pytest.mark.slow
def test_sums_beyond_float16_stay_in_float32(bundle, change_weight):
    """All of them in float16 would be infinities; the products that make them still fit."""
    scaled(bundle, change_weight, 15_000)
    assert largest_sum(bundle, random_latents()) > LARGEST
    write_variant(bundle, "fp16", [STAGE])
    entry = json.loads((bundle / "variants/fp16/losses.json").read_text())["stages"][STAGE]
    assert entry["graph"]["float32_sums"] >= 2 and entry["graph"]["float32_scores"] == 0, "its attention is fused"
    assert max(loss["relative_l2"] for loss in entry["losses"]) <= 5e-3


@pytest.mark.slow
def test_a_picture_beyond_what_the_check_saw_is_decoded_in_float32(bundle, change_weight, monkeypatch, caplog):
    """The graph holds what it was checked on; larger latents overflow it, and only then the stage changes."""
    scaled(bundle, change_weight, 11_000)
    write_variant(bundle, "fp16", [STAGE])
    usual, hot = random_latents(), random_latents(4)
    assert largest_sum(bundle, usual) < LARGEST < largest_sum(bundle, hot)
    processor = next(backend for backend in backends.BACKENDS if backend.name == "onnxruntime-cpu")

    def load(opened: Bundle, stage: str, dims: Any, threads: int | None, precision: str) -> Any:
        spec = stage_graph(opened, stage, precision)
        path = opened.file(spec.file)
        if precision == "fp32":
            return OnnxCpuSession(path, spec, dims)
        simulation = path.with_name("simulation.onnx")
        write_simulation(path, simulation, RECIPES[precision].activations)
        return OnnxCpuSession(simulation, _widened(spec), dims)

    stand_in = replace(processor, load=load)
    monkeypatch.setattr(backends, "BACKENDS", (stand_in,))
    stages = Stages(Bundle.open(bundle), backends.Choice(stand_in, "fp16", ""), 1)
    exact = OnnxCpuSession(bundle / STAGE / f"{STAGE}.onnx", Bundle.open(bundle).manifest.stages[STAGE])

    def decoded(latents: Any) -> tuple[Any, Any]:
        exact.inputs["latents"][...] = latents
        exact.run()
        return stages.run_vae(STAGE, SHAPE, latents[0])["image"].copy(), exact.outputs["image"].copy()

    with caplog.at_level(logging.WARNING, "consisti2v_rt"):
        half, single = decoded(usual)
        assert not caplog.records and 0 < np.linalg.norm(half - single) / np.linalg.norm(single) <= 5e-3
        made, single = decoded(hot)
    assert np.isfinite(made).all() and np.array_equal(made, single)
    (told,) = (record.message for record in caplog.records)
    assert f"stage {STAGE} produced values that are not finite in fp16: it runs in fp32" in told


def attention_of_large_scores(path: Path) -> None:
    """x [1, 8, 8] attends to itself, one head of size 8 (no fused kernel): each row has a direction of its own, so that
    its own score is the largest by far.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("MatMul", ["x", f"w_{part}"], [f"{part}0"]) for part in "qkv"]
    nodes += [helper.make_node("Reshape", [f"{part}0", "heads"], [part]) for part in "qkv"]
    nodes.append(helper.make_node("Attention", ["q", "k", "v"], ["y"], name="attention"))
    weights = [
        numpy_helper.from_array(np.eye(8, dtype=np.float32) * s, f"w_{p}")
        for p, s in zip("qkv", (1, 1, 0.01), strict=True)
    ]
    weights.append(numpy_helper.from_array(np.array([1, 1, 8, 8]), "heads"))
    values = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 8, 8])]
    graph = helper.make_graph(nodes, "attention", values, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save_model(onnx.shape_inference.infer_shapes(model), str(path))


@pytest.mark.parametrize("wide_scores", [False, True])
def test_scores_beyond_float16_need_their_island(tmp_path, relative_l2, wide_scores):
    import onnxruntime

    attention_of_large_scores(tmp_path / "plain.onnx")
    x = 600 * (np.eye(8, dtype=np.float32) + np.float32(0.01) * random_latents()[0, 0, :8, :8])[None]

    def run(path: Path) -> Any:
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]

    exact = run(tmp_path / "plain.onnx")
    assert (x[0] @ x[0].T / np.sqrt(8)).max() > LARGEST
    target = tmp_path / "fp16" / "fp16.onnx"
    metadata, _ = convert(tmp_path / "plain.onnx", target, RECIPES["fp16"], {}, wide_scores=wide_scores)
    write_simulation(target, target.with_name("simulation.onnx"), RECIPES["fp16"].activations)
    found = run(target.with_name("simulation.onnx"))
    assert metadata.decomposed_attentions == ["attention"] and metadata.float32_scores == int(wide_scores)
    if wide_scores:
        assert relative_l2(found, exact) < 1e-3
    else:
        assert not np.isfinite(found).all()


@pytest.mark.parametrize("precision", ["int8"])
def test_other_precisions_have_no_such_island(bundle, change_weight, precision):
    from consisti2v_rt import UserError

    scaled(bundle, change_weight, 15_000)
    with pytest.raises(UserError, match=f"stage {STAGE} overflows or dies in {precision}"):
        write_variant(bundle, precision, [STAGE])
