"""Backends that do not start, or do not load a stage: under auto the next one, under cuda one sentence."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from consisti2v_rt import ImageToVideo, UserError
from consisti2v_rt.errors import BackendError
from consisti2v_rt.runtime import backends
from consisti2v_rt.runtime.backends import choose
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.gpu import entry, onnx_cuda_start
from consisti2v_rt.runtime.gpu.device import GpuStatus
from consisti2v_rt.runtime.gpu.onnx_cuda_session import OnnxCudaGraph
from consisti2v_rt.runtime.gpu.tensorrt_session import Engine

CARD = GpuStatus(True, "RTX 4060, compute capability 8.9, 8.0 GiB", "RTX 4060", "8.9", 8 << 30)


@pytest.fixture
def provider_without_libraries(monkeypatch):
    """As with onnxruntime-gpu on a machine with a GPU and no cuDNN: this ONNX Runtime lists the provider, and cannot
    start it. Only the listing and the driver are made up.
    """
    if onnx_cuda_start.PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: [onnx_cuda_start.PROVIDER, "CPUExecutionProvider"]
    )
    monkeypatch.setattr(entry, "probe", lambda: CARD)
    monkeypatch.setattr(backends, "BACKENDS", tuple(b for b in backends.BACKENDS if b.name.startswith("onnxruntime")))
    onnx_cuda_start.why_not_started.cache_clear()
    yield
    onnx_cuda_start.why_not_started.cache_clear()


def test_auto_takes_the_processor_with_a_warning(provider_without_libraries, demo_bundle, caplog):
    with caplog.at_level(logging.WARNING):
        choice = choose(Bundle.open(demo_bundle, verify=False))
    assert choice.backend.name == "onnxruntime-cpu"
    (record,) = caplog.records
    assert "ONNX Runtime CUDA is not used" in record.message
    assert "does not start (" in record.message and "onnxruntime_providers_cuda" in record.message
    assert "install cuDNN 9" in record.message


def test_cuda_is_refused_in_one_sentence(provider_without_libraries, consisti2v, demo_bundle, photo, tmp_path):
    outcome = consisti2v(
        *("generate", "-b", demo_bundle, "-i", photo, "--device", "cuda", "--no-verify"), "-o", tmp_path / "a.mp4"
    )
    sentence = outcome.refusal()
    assert "nothing can run this bundle with device cuda" in sentence and "does not start (" in sentence


def test_doctor_says_it(provider_without_libraries, consisti2v):
    outcome = consisti2v("doctor")
    said = " ".join(outcome.stdout.replace("│", " ").split())
    assert outcome.code == 0 and "has its CUDA provider, but it does not start" in said
    assert "ONNX Runtime CPU cpu yes" in " ".join(outcome.stdout.replace("│", " ").split())


def test_a_provider_without_a_driver(provider_without_libraries, demo_bundle, monkeypatch, caplog):
    monkeypatch.setattr(entry, "probe", lambda: GpuStatus(False, "no NVIDIA driver is installed"))
    with caplog.at_level(logging.WARNING):
        assert choose(Bundle.open(demo_bundle, verify=False)).backend.name == "onnxruntime-cpu"
    assert "has its CUDA provider, but no NVIDIA driver is installed" in caplog.text
    with pytest.raises(UserError, match=r"device cuda: .*no NVIDIA driver is installed"):
        choose(Bundle.open(demo_bundle, verify=False), "cuda")


def test_a_provider_that_is_not_installed_is_no_warning(demo_bundle, caplog):
    if onnx_cuda_start.PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    with caplog.at_level(logging.WARNING):
        choose(Bundle.open(demo_bundle, verify=False))
    assert caplog.records == []


def test_the_smallest_graph_is_what_it_says():
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    model.ClearField("producer_name")
    assert model.SerializeToString() == onnx_cuda_start._SMALLEST_GRAPH
    session = onnxruntime.InferenceSession(onnx_cuda_start._SMALLEST_GRAPH, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([3], np.float32)})[0] == [3]


def test_what_is_missing_is_named(tmp_path):
    """The loader's own words, from a library that needs one which is not there."""

    class Package:
        __file__ = str(tmp_path / "__init__.py")

    name = "libonnxruntime_providers_cuda.so"
    assert onnx_cuda_start.missing_library(Package) == f"{name} is missing"
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / name).write_bytes(b"no library")
    assert name in onnx_cuda_start.missing_library(Package)


# -- a stage that does not load --------------------------------------------------------------------------------------


@pytest.fixture
def broken_stage(fake_cuda, monkeypatch):
    """(stage) -> the stand-in GPU refuses that stage, as an engine of another driver is refused."""

    def refuse(stage: str) -> None:
        good = backends.BACKENDS[0]

        def load(bundle, name, *more):
            if name == stage:
                raise BackendError(f"the engine {name}.plan is refused (wrong magic): build it for this machine.")
            return good.load(bundle, name, *more)

        rest = [b for b in backends.BACKENDS if b.name == "onnxruntime-cpu"]
        monkeypatch.setattr(backends, "BACKENDS", (dataclasses.replace(good, load=load), *rest))

    return refuse


@pytest.mark.parametrize("stage", ["vae_encoder", "unet", "vae_decoder"])
def test_the_next_backend_takes_over_before_the_first_step(broken_stage, demo_bundle, photo, caplog, stage):
    broken_stage(stage)
    steps, frames = [], []
    animate = ImageToVideo.from_bundle(demo_bundle, verify=False, threads=1)
    assert animate.backend.backend.name == "stand-in"
    with caplog.at_level(logging.WARNING):
        videos = animate(
            *(photo, "a cat"),
            num_inference_steps=1,
            seed=5,
            callback=lambda state: steps.append(state.step),
            on_frames=lambda video, first, chunk: frames.append(first),
        )
    assert animate.backend.backend.name == "onnxruntime-cpu"
    assert f"Stand-in is not used: the engine {stage}.plan is refused (wrong magic)" in caplog.text
    assert len(steps) == 1 and frames == list(range(16))
    plain = ImageToVideo.from_bundle(demo_bundle, verify=False, device="cpu", threads=1)
    assert (videos.frames == plain(photo, "a cat", num_inference_steps=1, seed=5).frames).all()


def test_a_device_that_was_asked_for_is_not_replaced(broken_stage, demo_bundle, photo):
    broken_stage("unet")
    animate = ImageToVideo.from_bundle(demo_bundle, verify=False, device="cuda")
    with pytest.raises(UserError, match=r"unet\.plan is refused"):
        animate(photo, "a cat", num_inference_steps=1, seed=5)


def test_doctor_tries_a_stage_of_the_bundle(broken_stage, consisti2v, demo_bundle):
    broken_stage("conditioning")
    outcome = consisti2v("doctor", "--bundle", demo_bundle)
    said = " ".join(outcome.stdout.replace("│", " ").split())
    assert "Stand-in was tried: the engine conditioning.plan is refused (wrong magic)" in said
    assert "ONNX Runtime CPU cpu yes" in said and "it was tried and does not load this bundle" in said


def test_an_engine_that_is_refused_is_such_an_error(tmp_path):
    """By a library that gives None, and by one that raises."""

    class Turns:
        def use(self, owner) -> None: ...

    class Runtime:
        raises = False

        def __init__(self, logger) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> None:
            if self.raises:
                raise RuntimeError("magic tag does not match")
            self.logger.log(Module.ILogger.Severity.ERROR, "version tag does not match")

    class Module:
        __version__ = "1.7"

        class ILogger:
            def __init__(self) -> None: ...

            class Severity:
                ERROR, INTERNAL_ERROR, WARNING = range(3)

    Module.__name__ = "tensorrt_rtx"
    Module.Runtime = Runtime
    (tmp_path / "unet.plan").write_bytes(b"plan")
    spec = type("Spec", (), {"stripped": False})()
    for raises, reason in ((False, "version tag"), (True, "magic tag")):
        Runtime.raises = raises
        with pytest.raises(BackendError, match=rf"refuses the engine unet\.plan \({reason} does not match\)"):
            Engine(tmp_path / "unet.plan", spec, Module, Turns(), tmp_path / "unet.onnx")


def test_a_provider_that_drops_out_is_such_an_error(provider_without_libraries, gpu, demo_bundle):
    class Turns:
        def use(self, owner) -> None: ...

    with pytest.raises(BackendError, match=r"has its CUDA provider but cannot start it .*: install what is missing"):
        OnnxCudaGraph(gpu, Turns(), demo_bundle / "conditioning" / "conditioning.onnx", "fp32")
