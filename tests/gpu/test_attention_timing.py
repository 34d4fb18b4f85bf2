"""The temporal attention beside an engine's: the same attention, one kernel, and both timed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from consisti2v_rt.benchmarks.device import attention
from consisti2v_rt.errors import UserError
from consisti2v_rt.export.engines import plan
from consisti2v_rt.kernels.temporal_window import rotation_table
from consisti2v_rt.runtime.gpu.device import GpuStatus, probe
from consisti2v_rt.tests.kernels.references.temporal_window_attention import temporal_window_attention

pytest.importorskip("onnx")


@pytest.mark.parametrize("head_size", [40, 160])
def test_the_engines_form_is_the_same_attention(head_size, relative_l2):
    """Its graph in ONNX Runtime, on an odd number of positions to a side."""
    import onnxruntime

    clips, frames, side, heads = 2, 5, 3, 4
    generator = np.random.default_rng(1)
    shape = (clips, frames, side * side, heads * head_size)
    arrays = {name: generator.standard_normal(shape).astype(np.float16) for name in ("query", "key", "value")}
    graph = attention.attention_graph(clips, frames, side, heads, head_size)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (made,) = session.run(None, arrays)
    expected = temporal_window_attention(*arrays.values(), heads, side, side, rotation_table(frames, heads * head_size))
    assert relative_l2(made.astype(np.float32), expected) < 2e-3


def test_the_engines_form_is_one_attention_kernel(monkeypatch):
    """Built for a card that is not here, at the shipped sizes, with a bundle's flags; an attention that does not fuse
    does not build.
    """
    pytest.importorskip("tensorrt_rtx")
    flags: list[str] = []
    configure = plan._configure

    def recorded(library, builder, request):
        config = configure(library, builder, request)
        flags.extend(name for name, flag in library.BuilderFlag.__members__.items() if config.get_flag(flag))
        return config

    monkeypatch.setattr(plan, "_configure", recorded)
    for side, head_size in attention.LEVELS:
        shape = (attention.CLIPS, attention.FRAMES, side * side, attention.HEADS * head_size)
        graph = attention.attention_graph(*shape[:2], side, attention.HEADS, head_size)
        built, spec = attention.build_attention(graph, shape, "8.9")
        assert len(built) > 1000 and spec.backend == "tensorrt-rtx"
    assert "REQUIRE_USER_ALLOCATION" in flags and "TF32" not in flags
    with pytest.raises(UserError, match="backend tensorrt builds on the GPU itself"):
        attention.build_attention(graph, shape, "9.0")


def test_the_kernel_is_timed_where_no_engine_can_be_had(gpu, monkeypatch):
    """Whatever ends the engine's case, not only a refusal."""

    def refuse(*_):
        raise RuntimeError("it went away.")

    monkeypatch.setattr(attention, "build_attention", refuse)
    monkeypatch.setattr(attention, "REPEATS", 1)
    row = attention.measure_level(gpu, 3, 40, 2)
    assert len(row["kernel_us"]) == 2 and min(row["kernel_us"]) > 0
    assert row["engine_us"] is None and row["engine_refused"] == "it went away"
    attention._show({"gpu": "stand-in", "levels": [row]})


def test_a_capture_that_fails_is_ended(gpu, monkeypatch):
    """What the driver refuses during a capture ends that case alone."""
    monkeypatch.setattr(attention, "REPEATS", 1)
    monkeypatch.setattr(attention.Kernels, "launch", lambda *_, **__: None)
    monkeypatch.setattr(attention, "build_attention", lambda *_: (b"", None))
    calls: list[int] = []

    class Breaking:
        def enqueue(self) -> None:
            calls.append(1)
            if gpu.capturing:
                gpu.stream.sync()

    monkeypatch.setattr(attention, "attention_session", lambda *_: Breaking())
    row = attention.measure_level(gpu, 3, 40, 1)
    assert calls and row["engine_us"] is None and "captur" in row["engine_refused"]
    gpu.stream.sync()


def test_without_a_gpu_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(attention, "probe", lambda: GpuStatus(False, "no NVIDIA driver is installed"))
    app = typer.Typer()
    app.command()(attention.main)
    done = CliRunner().invoke(app, ["--output", str(tmp_path / "kernels.json")])
    assert done.exit_code == 2
    assert "error: There is no GPU here (no NVIDIA driver is installed): run this on a machine" in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
@pytest.mark.skipif(not probe().found, reason=probe().reason)
def test_on_a_gpu_every_level_has_times(tmp_path):
    attention.main(tmp_path / "kernels.json", rounds=2)
    levels = json.loads((tmp_path / "kernels.json").read_text())["levels"]
    assert len(levels) == 3
    for row in levels:
        assert min(row["kernel_us"]) > 0
        assert row["engine_refused"] if row["engine_us"] is None else min(row["engine_us"]) > 0
