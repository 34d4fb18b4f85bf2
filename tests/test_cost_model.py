"""The cost model: FLOPs against torch's counter, traffic and memory on small graphs, GPUs, presets, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt.benchmarks.cost import graph as kinds
from consisti2v_rt.benchmarks.cost import prediction as module
from consisti2v_rt.benchmarks.cost.command import predict
from consisti2v_rt.benchmarks.cost.gpus import Machine, describe_gpu, seconds_by_kind
from consisti2v_rt.benchmarks.cost.prediction import predict_model, preset_plans
from consisti2v_rt.benchmarks.cost.work import FULL_SIZE, Work, load_costs, save_table, totals_by_kind
from consisti2v_rt.errors import UserError
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.gpu.cards import CARDS
from consisti2v_rt.runtime.request.presets import PRESETS

# -- FLOPs against torch ---------------------------------------------------------------------------------------------


def torch_flops(run: Callable[[], Any]) -> int:
    """To be counted on the meta device: on the CPU, torch's counter passes over the fused attention."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture
def demo_bundle() -> Path:
    """The demo bundle's stages at the size and shape that the expected counts below are of."""
    return Path(__file__).parent / "data" / "untrained_bundle"


@pytest.mark.slow
def test_unet_and_conditioning_cost_what_torch_counts(demo_bundle: Path) -> None:
    """The bundle's own U-Net, rebuilt in torch from the settings in its manifest."""
    torch = pytest.importorskip("torch")
    from consisti2v_rt.export.unet import VideoUNet

    model = Bundle.open(demo_bundle, verify=False).manifest.model
    costs, rows = load_costs(demo_bundle), model.rows
    size = (model.height // model.vae_scale_factor, model.width // model.vae_scale_factor)
    with torch.device("meta"):
        unet = VideoUNet.from_config(model.unet_config)
        text = torch.empty(1, 77, unet.config.cross_attention_dim)
        sample = torch.empty(rows, model.latent_channels, model.frames - 1, *size)
        first, number = torch.empty(rows, model.latent_channels, 1, *size), torch.tensor([3])
        key_values = unet.text_key_values(text.expand(rows, -1, -1))
    forward = torch_flops(lambda: unet.denoise(sample, number, key_values, first, number))
    assert costs.stages["unet"].flops == pytest.approx(forward, rel=0.005)
    conditioning = torch_flops(lambda: unet.text_key_values(text))
    assert costs.stages["conditioning"].flops == pytest.approx(conditioning, rel=0.005)


@pytest.mark.slow
def test_an_exported_stage_costs_what_torch_counts(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from consisti2v_rt.benchmarks.cost.graph import read_graph
    from consisti2v_rt.benchmarks.cost.work import count_stage
    from consisti2v_rt.export.onnx_graph import write_graph
    from consisti2v_rt.export.random_model import random_model
    from consisti2v_rt.export.stages import dynamic_sizes, stages

    stage = next(s for s in stages(random_model("tiny"), 64, 48, rows=2, dynamic=False) if s.name == "vae_decoder")
    write_graph(stage, tmp_path / "stage.onnx", dynamic_sizes(1, 8))
    # Of frames that are decoded at once one is counted.
    arguments = stage.arrange([tensor[:1].to("meta") for tensor in stage.inputs.values()])
    counted = torch_flops(lambda: stage.module.to("meta")(*arguments))
    assert count_stage(read_graph(tmp_path / "stage.onnx")).flops == pytest.approx(counted, rel=0.005)


@pytest.mark.slow
def test_the_stored_full_size_table_is_the_full_size_model() -> None:
    torch = pytest.importorskip("torch")
    from consisti2v_rt.export.unet import VideoUNet

    costs = load_costs(FULL_SIZE)
    with torch.device("meta"):
        unet, text = VideoUNet.from_config({}), torch.empty(2, 77, 1024)
        sample, first = torch.empty(2, 4, 15, 32, 32), torch.empty(2, 4, 1, 32, 32)
    # The torch forward makes the text's keys and values too, which the bundle does once per prompt.
    counted = torch_flops(lambda: unet(sample, torch.tensor([981]), text, first, torch.tensor([3])))
    own = costs.stages["unet"].flops + 2 * costs.stages["conditioning"].flops
    assert own == pytest.approx(counted, rel=0.005)


# -- one graph at a time ---------------------------------------------------------------------------------------------


@pytest.fixture
def count(tmp_path: Path) -> Callable[..., Any]:
    """Counts a graph given as (op, inputs, outputs, attributes), with the shapes of its inputs and weights."""
    onnx = pytest.importorskip("onnx")
    from consisti2v_rt.benchmarks.cost.graph import read_graph
    from consisti2v_rt.benchmarks.cost.work import count_stage

    def run(
        nodes: Sequence[tuple[str, str, str, dict[str, Any]]],
        inputs: dict[str, Sequence[int | str]],
        weights: dict[str, Sequence[int]],
    ) -> Any:
        helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
        made = [helper.make_node(op, i.split(), o.split(), name=o, **more) for op, i, o, more in nodes]
        last = made[-1].output[0]
        graph = helper.make_graph(
            made,
            "small",
            [helper.make_tensor_value_info(name, float32, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(last, float32, None)],
            [helper.make_tensor(n, float32, s, [0.0] * prod(s)) for n, s in weights.items()],
        )
        path = tmp_path / "small.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), path)
        return count_stage(read_graph(path))

    return run


def test_flops_of_each_operation(count: Callable[..., Any]) -> None:
    conv = count([("Conv", "x w b", "y", {"strides": [2, 2]})], {"x": [1, 6, 9, 9]}, {"w": [8, 6, 3, 3], "b": [8]})
    assert conv.flops == 2 * 8 * 4 * 4 * 6 * 9
    assert next(iter(conv.kernels)).kind == kinds.RESAMPLING
    gemm = count([("Gemm", "x w", "y", {"transB": 1})], {"x": [1, 5]}, {"w": [7, 5]})
    assert gemm.flops == 2 * 5 * 7 and next(iter(gemm.kernels)).kind == kinds.EMBEDDING
    attention = count([("Attention", "q k v", "y", {})], {"q": [2, 3, 10, 8], "k": [2, 3, 7, 8], "v": [2, 3, 7, 4]}, {})
    assert attention.flops == 2 * 2 * 3 * 10 * 7 * (8 + 4)
    joined = {"q_num_heads": 4, "kv_num_heads": 2}
    grouped = count([("Attention", "q k v", "y", joined)], {"q": [2, 10, 32], "k": [2, 7, 16], "v": [2, 7, 16]}, {})
    assert grouped.flops == 2 * 2 * 4 * 10 * 7 * (8 + 8)


def test_traffic_fused_and_single(count: Callable[..., Any]) -> None:
    """conv -> silu: fused, the maps between the three nodes never reach memory."""
    nodes = [("Conv", "x w", "h", {}), ("Sigmoid", "h", "s", {}), ("Mul", "h s", "y", {})]
    costs = count(nodes, {"x": [1, 4, 5, 5]}, {"w": [6, 4, 1, 1]})
    (fused,) = costs.kernels
    assert fused == Work(kinds.CONV_1X1, 2 * 150 * 4, 24, 100, 150)
    single = {total.kind: total.traffic for total in totals_by_kind(costs.nodes)}
    assert single == {kinds.CONV_1X1: 24 + 100 + 150, kinds.ELEMENT_WISE: 150 + 150 + 300 + 150}


def test_a_small_addend_is_read_by_the_kernel_of_the_large_one(count: Callable[..., Any]) -> None:
    """The time embedding comes after the convolution in the graph, but is added in the convolution's kernel."""
    nodes = [("Conv", "x w", "h", {}), ("MatMul", "t e", "emb", {}), ("Add", "h emb", "y", {})]
    costs = count(nodes, {"x": [1, 4, 5, 6], "t": [1, 3]}, {"w": [4, 4, 3, 3], "e": [3, 4]})
    assert Work(kinds.EMBEDDING, 24, 12, 3, 4) in costs.kernels
    assert Work(kinds.CONV_3X3, 2 * 4 * 3 * 4 * 36, 144, 120 + 4, 48) in costs.kernels


def test_memory_is_freed_after_the_last_reader(count: Callable[..., Any]) -> None:
    """x (10) -> a (40) -> b (20) -> y (10): most is alive while b is made from a, beside the bound x and y."""
    nodes = [("MatMul", "x wa", "a", {}), ("MatMul", "a wb", "b", {}), ("MatMul", "b wy", "y", {})]
    costs = count(nodes, {"x": [1, 10]}, {"wa": [10, 40], "wb": [40, 20], "wy": [20, 10]})
    assert costs.memory.activations == 10 + 10 + 40 + 20
    assert costs.memory.weights == 400 + 800 + 200 and costs.memory.scratch == 60
    skip = count(
        [*nodes[:2], ("MatMul", "b wc", "c", {}), ("Add", "a c", "y", {})],
        {"x": [1, 10]},
        {"wa": [10, 40], "wb": [40, 20], "wc": [20, 40]},
    )
    # a waits for the addition: beside x and y, a and b.
    assert skip.memory.activations == 10 + 40 + 40 + 20


def test_dynamic_sizes_are_refused(count: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="without --dynamic"):
        count([("Conv", "x w", "y", {})], {"x": [1, 4, "latent_height", 5]}, {"w": [6, 4, 1, 1]})


def test_kinds_of_the_demo_unet(demo_bundle: Path) -> None:
    pytest.importorskip("onnx")
    totals = {total.kind: total for total in totals_by_kind(load_costs(demo_bundle).stages["unet"].kernels)}
    # Three spatial and three temporal transformers with a spatial one in the middle: each self-attention runs twice,
    # for the first frame and for the others.
    assert totals[kinds.TEMPORAL_ATTENTION].kernels == 3
    assert totals[kinds.TEXT_ATTENTION].kernels == 7
    assert totals[kinds.SELF_ATTENTION].kernels == 8
    assert totals[kinds.FEED_FORWARD].kernels == 14
    # Q, K, V, out of self-attention, and Q, out of text attention.
    assert totals[kinds.ATTENTION_PROJECTION].kernels == 7 * 6
    assert totals[kinds.TEMPORAL_CONV].kernels == 16
    assert totals[kinds.LINEAR].kernels == 14


# -- GPUs and the roofline ---------------------------------------------------------------------------------------------


def test_peaks_are_the_published_ones() -> None:
    laptop = describe_gpu("rtx-4060-laptop")
    assert laptop.power == 50 and laptop.clock == pytest.approx(1.6e9, rel=0.01)
    peaks = [laptop.peak(*arithmetic) / 1e12 for arithmetic in (("fp16", "fp16"), ("fp16", "fp32"), ("fp8", "fp16"))]
    assert peaks == pytest.approx([39.2, 19.6, 78.5], rel=0.01)
    for name, tera in (
        ("rtx-3060", 51.0),
        ("rtx-4060", 60.46),
        ("rtx-4090", 330.3),
        ("rtx-5090", 419),
        ("h100", 989.4),
    ):
        assert describe_gpu(name).peak("fp16", "fp16") / 1e12 == pytest.approx(tera, rel=2e-3), name
    assert describe_gpu("rtx-4090").peak("fp16", "fp32") / 1e12 == pytest.approx(165.2, rel=1e-3)
    assert describe_gpu("h200").peak("fp16", "fp32") == describe_gpu("h100").peak("fp16", "fp16")
    assert all(card.performance.source for card in CARDS if card.performance is not None)
    clocks = [describe_gpu("rtx-4060-laptop", power).clock for power in (35, 40, 50, 60, 80, 115)]
    assert clocks == sorted(clocks) and clocks[0] == 1.47e9 and clocks[-1] == 2.37e9


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: describe_gpu("rtx-9090"), "not in the table"),
        (lambda: describe_gpu("rtx-4060-laptop", 20), "35 to 115 W"),
        (lambda: describe_gpu("own", architecture="ada", multiprocessors=10), "--clock, --bandwidth, --memory"),
        (lambda: describe_gpu("rtx-4090", clock_ghz=-1.0), "positive"),
        (lambda: describe_gpu("rtx-4090", architecture="volta"), "ampere"),
        (lambda: describe_gpu("rtx-3060").peak("fp8", "fp16"), "no fp8"),
    ],
)
def test_refusals_name_what_is_allowed(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()


def test_any_gpu_by_flags() -> None:
    own = describe_gpu("own", architecture="ada", multiprocessors=10, clock_ghz=2.0, bandwidth_gb=100, memory_gb=4)
    assert own.peak("fp16", "fp16") == 10 * 1024 * 2e9 and own.memory == 4 * 2**30
    changed = describe_gpu("rtx-4060-laptop", 140, clock_ghz=2.5)
    assert (changed.clock, changed.power, changed.bandwidth) == (2.5e9, 140, 256e9)


def test_floor_is_the_slower_of_compute_and_memory() -> None:
    gpu = describe_gpu("own", architecture="ada", multiprocessors=1, clock_ghz=1.0, bandwidth_gb=1, memory_gb=1)
    half = Machine(gpu, "fp16", "fp32")
    busy, idle = Work(kinds.LINEAR, 512_000_000_000, 10, 10, 10), Work(kinds.LINEAR, 10, 0, 10**9, 0)
    assert half.floor(busy) == pytest.approx(1.0) and half.floor(idle) == pytest.approx(2.0)
    assert seconds_by_kind({busy: 2, idle: 1}, half.floor) == {kinds.LINEAR: pytest.approx(4.0)}
    # FP8: weights of products take a byte, activations two; attention stays FP16.
    eighth = Machine(gpu, "fp8", "fp32")
    assert eighth.traffic(Work(kinds.LINEAR, 1, 100, 10, 10)) == 100 + 40
    assert eighth.peak(kinds.LINEAR) == 2 * eighth.peak(kinds.SELF_ATTENTION)
    assert all(machine.stated(work) > machine.floor(work) for machine in (half, eighth) for work in (busy, idle))


# -- the prediction ----------------------------------------------------------------------------------------------------


def test_headline_for_the_laptop_card(capsys: pytest.CaptureFixture[str]) -> None:
    predict(json=True)
    shown = json.loads(capsys.readouterr().out)
    video = shown["videos"][0]
    assert shown["gpu"]["power"] == 50 and video["steps"] == 50 and shown["original_report_seconds"] == 900
    assert video["compute_floor"] < video["floor_fp16"] < video["floor_fp32"] < video["stated"] < 900
    # 8.3 TFLOP a step at 39 TFLOP/s.
    assert video["compute_floor"] == pytest.approx(11, rel=0.1)
    assert shown["memory"]["fits"] and shown["memory"]["needed"] < 5 * 2**30
    unet = next(stage for stage in shown["stages"] if stage["name"] == "unet")
    # TensorRT for RTX's own figures for this graph in FP16: a plan of 2411 MiB, 296 MiB of device memory.
    assert unet["weights"] / 2**20 == pytest.approx(2411, rel=0.05)
    assert unet["activations"] / 2**20 < 296 < (unet["activations"] + unet["scratch"]) / 2**20 < 1.5 * 296


def test_report_says_prediction_and_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    predict(steps=[50])
    text = " ".join(capsys.readouterr().out.split())
    assert "prediction, not a measurement" in text and "measured 900 s" in text and "it fits" in text
    predict("rtx-4060-laptop", memory=2.0, steps=[50])
    assert "DOES NOT FIT" in " ".join(capsys.readouterr().out.split())
    predict("rtx-3060", steps=[50])
    # The original measurement is of another card.
    assert "900 s" not in capsys.readouterr().out


def test_a_saved_table_predicts_like_its_bundle(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    table = tmp_path / "costs.json"
    predict(bundle=demo_bundle, save_costs=table, json=True)
    counted = json.loads(capsys.readouterr().out)
    predict(bundle=table, json=True)
    assert json.loads(capsys.readouterr().out) == counted
    save_table(load_costs(table), tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == table.read_text()
    with pytest.raises(UserError, match="not a table of costs"):
        load_costs(demo_bundle / "bundle.json")


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
    assert seconds["exact"] == max(seconds.values()) < 900 and seconds["balanced"] < 0.25 * seconds["exact"]
    floor = {video.name: video.floor_fp16 for video in prediction.videos}
    assert floor["fast"] <= 5.0, "at 50 W"


def test_memory_of_each_stage_is_judged_alone() -> None:
    prediction = predict_model(load_costs(FULL_SIZE), describe_gpu("rtx-4060-laptop"))
    for stage in prediction.stages:
        assert stage.memory == stage.weights + stage.activations + stage.scratch < prediction.memory_needed
    assert max(prediction.stages, key=lambda stage: stage.memory).name == "unet"
