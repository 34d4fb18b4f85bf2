"""What a fit can be made of: records of ``bench`` on a GPU, and layers of an engine's profile; and presets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt.benchmarks.cost import graph as kinds
from consisti2v_rt.benchmarks.cost import prediction as module
from consisti2v_rt.benchmarks.cost.fit import read_fit
from consisti2v_rt.benchmarks.cost.gpus import describe_gpu
from consisti2v_rt.benchmarks.cost.model_costs import FULL_SIZE, load_costs, stage_graph
from consisti2v_rt.benchmarks.cost.prediction import plan_of_steps, predict_model, preset_plans
from consisti2v_rt.benchmarks.cost.work import layer_work, node_works
from consisti2v_rt.errors import UserError
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.request.presets import PRESETS

LAPTOP = {"name": "NVIDIA GeForce RTX 4060 Laptop GPU", "power_limit_watts": 60.0}


def record(**changes: Any) -> dict[str, Any]:
    """A record of ``bench BUNDLE`` on a laptop's GPU, with what a fit looks at."""
    rows = [
        {"name": "video", "seconds": [30.0], "runs": 1},
        {"name": "U-Net", "seconds": [20.0, 26.0, 25.0], "runs": 50},
        {"name": "VAE decoder", "seconds": [0.64], "runs": 16},
    ]
    torch = {"backend": "torch-eager", "device": "cuda", "unavailable": None, "precision": "fp16", "rows": []}
    ours = {"backend": "tensorrt-rtx", "device": "cuda", "unavailable": None, "precision": "fp16", "rows": rows}
    data = {
        "bundle": {"frames": 16, "height": 256, "width": 256},
        "machine": {"gpus": [LAPTOP]},
        "subjects": [torch, ours],
    }
    return data | changes


def save(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_a_record_of_bench_is_fitted_to(tmp_path: Path) -> None:
    costs = load_costs(FULL_SIZE)
    fit = read_fit(save(tmp_path / "record.json", record()), costs)
    assert fit.timings == 2 and fit.residual < 0.05
    # Half a second a step, and on the same card, at its limit of then, again.
    again = predict_model(costs, describe_gpu("rtx-4060-laptop", 60), plans=[plan_of_steps(50)], fit=fit)
    assert {stage.name: stage.fitted for stage in again.stages}["unet"] == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bundle": {"frames": 16, "height": 128, "width": 128}}, "--bundle"),
        ({"machine": {"gpus": []}}, "on a processor"),
        ({"machine": {"gpus": [LAPTOP | {"name": "NVIDIA GeForce RTX 9070 Ti"}]}}, "not in the table"),
        ({"subjects": []}, "--device cuda"),
        ({"subjects": [{}]}, "it needs gpu"),
    ],
)
def test_records_that_say_nothing_of_the_gpu(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_fit(save(tmp_path / "record.json", record(**changes)), load_costs(FULL_SIZE))


def test_layers_of_a_profile(demo_bundle: Path, tmp_path: Path) -> None:
    """A layer's work is that of its nodes; what passes between them is not traffic."""
    pytest.importorskip("onnx")
    graph = stage_graph(Bundle.open(demo_bundle, verify=False), "unet")
    single = dict(node_works(graph))
    conv = next(node for node in graph if node.op_type == "Conv" and node.successors()[0].name in single)
    follower = conv.successors()[0]
    alone, pair = layer_work(graph, conv.name), layer_work(graph, f"{{{conv.name} + {follower.name}}}")
    assert alone == single[conv.name]
    assert pair.kind == alone.kind and pair.flops == alone.flops + single[follower.name].flops
    assert pair.weights == alone.weights + single[follower.name].weights
    lone_consumer = len(conv.successors()) == 1
    assert pair.read <= alone.read + single[follower.name].read - alone.written
    assert pair.written == single[follower.name].written + (0 if lone_consumer else alone.written)
    with pytest.raises(UserError, match="names no node"):
        layer_work(graph, "foreignNode_12")

    convs = [name for name, work in single.items() if work.kind == kinds.CONV_3X3][:3]
    timings = [{"stage": "unet", "layer": name, "seconds": 1e-4} for name in convs]
    path = save(tmp_path / "layers.json", {"gpu": "rtx-4090", "timings": timings})
    costs = load_costs(demo_bundle)
    assert set(read_fit(path, costs, demo_bundle).efficiency) == {kinds.CONV_3X3}
    with pytest.raises(UserError, match="give its --bundle"):
        read_fit(path, costs)


def test_presets_cost_their_steps_and_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {plan.name: plan for plan in preset_plans("text")}
    assert list(plans) == list(PRESETS) and plans["exact"].forwards == plans["exact"].steps == 50
    # A preset that guides in half of its steps runs one row of two in the other half.
    half = {"halved": {"num_inference_steps": 20, "guidance_interval": (0.0, 0.5)}}
    monkeypatch.setattr(module, "PRESETS", half)
    assert [(plan.steps, plan.forwards) for plan in preset_plans("text")] == [(20, 15)]
    # With a single branch no step is cheaper than another.
    assert all(plan.forwards == plan.steps for plan in preset_plans("none"))
    prediction = predict_model(load_costs(FULL_SIZE), describe_gpu("rtx-4060-laptop"), plans=list(plans.values()))
    seconds = {video.name: video.stated for video in prediction.videos}
    assert seconds["exact"] == max(seconds.values()) < 900 and seconds["balanced"] < 0.75 * seconds["exact"]


def test_memory_of_each_stage_is_judged_alone() -> None:
    prediction = predict_model(load_costs(FULL_SIZE), describe_gpu("rtx-4060-laptop"))
    for stage in prediction.stages:
        assert stage.memory == stage.weights + stage.activations + stage.scratch < prediction.memory_needed
    assert max(prediction.stages, key=lambda stage: stage.memory).name == "unet"
