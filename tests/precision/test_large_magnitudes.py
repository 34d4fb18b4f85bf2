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


def test_sums_beyond_float16_stay_in_float32(bundle, change_weight):
    """All of them in float16 would be infinities; the products that make them still fit."""
    scaled(bundle, change_weight, 15_000)
    assert largest_sum(bundle, random_latents()) > LARGEST
    write_variant(bundle, "fp16", [STAGE])
    entry = json.loads((bundle / "variants/fp16/losses.json").read_text())["stages"][STAGE]
    assert entry["graph"]["float32_sums"] >= 2
    assert max(loss["relative_l2"] for loss in entry["losses"]) <= 5e-3


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


@pytest.mark.parametrize("precision", ["int8"])
def test_other_precisions_have_no_such_island(bundle, change_weight, precision):
    from consisti2v_rt import UserError

    scaled(bundle, change_weight, 15_000)
    with pytest.raises(UserError, match=f"stage {STAGE} overflows or dies in {precision}"):
        write_variant(bundle, precision, [STAGE])
