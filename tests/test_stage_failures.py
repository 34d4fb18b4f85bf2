"""Graphs that fail or never end, memory that runs out, and threads that are not there: each is one sentence."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from dataclasses import asdict

import numpy as np
import pytest

from consisti2v_rt import ImageToVideo, UserError
from consisti2v_rt.errors import CancelledError, first_line
from consisti2v_rt.runtime import pipeline
from consisti2v_rt.runtime.bundle.bundle import Bundle, hash_files
from consisti2v_rt.runtime.stage_failure import stage_failures
from consisti2v_rt.runtime.stages import Stages
from consisti2v_rt.runtime.timings import Timings, time_limit

pytestmark = pytest.mark.slow

onnx = pytest.importorskip("onnx")
STAGE = "vae_encoder"


def graph(bundle: Bundle, kind: str):
    """A graph with the stage's inputs and outputs that goes wrong at run time."""
    from onnx import TensorProto, helper

    spec = bundle.manifest.stages[STAGE]

    def values(specs):
        types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
        return [helper.make_tensor_value_info(s.name, types[s.dtype], list(s.shape)) for s in specs]

    def constant(name, array):
        return onnx.numpy_helper.from_array(array, name)

    shape = np.array(spec.outputs[0].shape, np.int64)
    weights = [constant("shape", shape), constant("true", np.array(True)), constant("zero", np.array(0, np.int64))]
    nodes = [
        helper.make_node("ReduceSum", [spec.inputs[0].name], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "nought"], ["none"]),
        helper.make_node("Expand", ["none", "shape"], ["start"]),
    ]
    weights.append(constant("nought", np.array(0, np.float32)))
    if kind == "endless":
        body = helper.make_graph(
            [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Identity", ["v"], ["v2"])],
            "body",
            [
                helper.make_tensor_value_info("i", TensorProto.INT64, []),
                helper.make_tensor_value_info("c", TensorProto.BOOL, []),
                helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
                helper.make_tensor_value_info("v2", TensorProto.FLOAT, None),
            ],
        )
        nodes.append(helper.make_node("Loop", ["", "true", "start"], ["end"], body=body))
    elif kind == "index":
        nodes += [
            helper.make_node("Cast", ["none"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Add", ["whole", "far"], ["place"]),
            helper.make_node("Gather", ["start", "place"], ["row"], name="\x1b[31mrow", axis=0),
            helper.make_node("Add", ["start", "row"], ["end"]),
        ]
        weights.append(constant("far", np.array(9, np.int64)))
    else:
        nodes += [
            helper.make_node("Cast", ["none"], ["whole"], to=TensorProto.INT64),
            helper.make_node("Add", ["whole", "huge"], ["size"]),
            helper.make_node("Expand", ["none", "size"], ["vast"]),
            helper.make_node("ReduceSum", ["vast"], ["total"], keepdims=0),
            helper.make_node("Add", ["start", "total"], ["end"]),
        ]
        weights.append(constant("huge", np.array([1 << 46], np.int64)))
    nodes += [helper.make_node("Identity", ["end"], [output.name]) for output in spec.outputs]
    made = helper.make_graph(nodes, "g", values(spec.inputs), values(spec.outputs), weights)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.fixture
def wrong_bundle(demo_bundle, tmp_path):
    def make(kind: str):
        folder = shutil.copytree(demo_bundle, tmp_path / kind)
        manifest = json.loads((folder / "bundle.json").read_text())
        file = manifest["stages"][STAGE]["file"]
        onnx.save(graph(Bundle.open(folder, verify=False), kind), str(folder / file))
        manifest["files"][file] = asdict(hash_files(folder, [file])[file])
        (folder / "bundle.json").write_text(json.dumps(manifest))
        return folder

    return make


@pytest.mark.parametrize(
    ("kind", "says"), [("index", f"stage {STAGE} failed"), ("memory", f"stage {STAGE} needs more memory")]
)
def test_a_stage_that_fails_is_named(consisti2v, wrong_bundle, photo, tmp_path, kind, says):
    folder = wrong_bundle(kind)
    outcome = consisti2v("generate", "-b", folder, "-i", photo, "-o", tmp_path / "a.mp4", "--steps", "1")
    assert says in outcome.refusal() and "\x1b" not in outcome.stderr
    assert not list(tmp_path.glob("*.mp4"))


def test_an_endless_graph_ends_at_the_time_limit(consisti2v, wrong_bundle, photo, tmp_path):
    folder = wrong_bundle("endless")
    started = time.perf_counter()
    options = ["-i", photo, "-o", tmp_path / "a.mp4", "--steps", "1", "--time-limit", "0.5"]
    outcome = consisti2v("generate", "-b", folder, *options)
    assert f"time limit of 0.5 s was reached in stage {STAGE}" in outcome.refusal()
    assert time.perf_counter() - started < 15
    assert not list(tmp_path.glob("*.mp4"))


def test_a_run_within_its_limit_is_the_same_run(demo_bundle, photo):
    animate = ImageToVideo.from_bundle(demo_bundle, device="cpu")
    options = {"num_inference_steps": 1, "seed": 3}
    threads = threading.active_count()
    limited = animate(photo, "zoom in", time_limit=600, **options)
    assert threading.active_count() == threads
    np.testing.assert_array_equal(limited.frames, animate(photo, "zoom in", **options).frames)
    with pytest.raises(UserError, match=r"time limit of 0\.001 s was reached in stage"):
        animate(photo, "zoom in", time_limit=0.001, num_inference_steps=50)
    # The limit of one call says nothing about the next.
    np.testing.assert_array_equal(limited.frames, animate(photo, "zoom in", **options).frames)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "1", True])
def test_time_limits_that_are_none(demo_bundle, photo, seconds):
    with pytest.raises(UserError, match="time_limit"):
        ImageToVideo.from_bundle(demo_bundle)(photo, time_limit=seconds)


def test_a_cancelled_run_is_no_run_out_of_time():
    with pytest.raises(CancelledError), time_limit(60, lambda: None, Timings()):
        raise CancelledError


def test_no_cancel_after_the_end():
    cancelled = []
    with time_limit(0.05, lambda: cancelled.append(1), Timings()):
        pass
    time.sleep(0.1)
    assert not cancelled


def test_memory_that_runs_out(consisti2v, demo_bundle, photo, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="stage unet needs more memory"), stage_failures("unet", "a backend"):
        raise MemoryError
    with pytest.raises(UserError, match="stage unet needs more memory"), stage_failures("unet", "a backend"):
        np.empty(1 << 62, np.uint8)

    def fail(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Stages, "decode_frames", fail)
    outcome = consisti2v("generate", "-b", demo_bundle, "-i", photo, "-o", tmp_path / "a.mp4", "--steps", "1")
    assert "not enough memory" in outcome.refusal() and not list(tmp_path.iterdir())


@pytest.mark.parametrize("threads", [0, -1, (os.cpu_count() or 1) + 1, 1.0, "2", True, [1]])
def test_threads_are_checked_in_the_library(demo_bundle, threads):
    with pytest.raises(UserError, match=f"from 1 to {os.cpu_count()}"):
        ImageToVideo.from_bundle(demo_bundle, threads=threads)


def test_threads_that_are_there(demo_bundle, consisti2v, photo, tmp_path):
    for threads in (None, 1, os.cpu_count(), np.int64(1)):
        pipeline.ImageToVideo.from_bundle(demo_bundle, threads=threads, verify=False)
    outcome = consisti2v("generate", "-b", demo_bundle, "-i", photo, "-o", tmp_path / "a.mp4", "--threads", "4096")
    assert f"from 1 to {os.cpu_count()}" in outcome.refusal()


def test_the_first_line_of_a_message():
    assert first_line(RuntimeError("a.\nb")) == "a" and first_line(MemoryError()) == "MemoryError"
    assert first_line(RuntimeError("\n")) == "RuntimeError" and len(first_line("x" * 5000)) == 300
