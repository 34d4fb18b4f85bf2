"""The driver layer without a driver: clean reasons, no GPU package imported, names that the real packages have."""

from __future__ import annotations

import inspect
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from consisti2v_rt import UserError
from consisti2v_rt.benchmarks.device.wheels import distribution, missing
from consisti2v_rt.runtime.gpu import device
from consisti2v_rt.runtime.gpu.onnx_cuda_session import provider_options
from consisti2v_rt.runtime.gpu.pacing import IN_FLIGHT, Pacer

GPU_PACKAGES = ("cuda", "tensorrt_rtx", "tensorrt", "nvmath", "torch")


def test_no_gpu_package_is_loaded_on_a_machine_without_one(demo_bundle, photo):
    if device.probe().found:
        pytest.skip("this machine has a GPU")
    script = f"""
import sys
from consisti2v_rt import ImageToVideo
ImageToVideo.from_bundle({str(demo_bundle)!r}, verify=False)
print(*sorted({{name.split(".")[0] for name in sys.modules}} & set({GPU_PACKAGES!r})))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stdout + done.stderr


def test_the_reason_is_a_sentence_and_the_refusal_quotes_it(monkeypatch):
    status = device.GpuStatus(False, "no NVIDIA driver is installed")
    monkeypatch.setattr(device, "probe", lambda: status)
    with pytest.raises(UserError, match=r"^device cuda cannot be used: no NVIDIA driver is installed\.$"):
        device.Gpu()


def test_reasons_from_errors_are_one_sentence():
    error = RuntimeError('"cuda" cannot be found. Ensure the display driver is installed.\nmore')
    assert device._first_sentence(error) == '"cuda" cannot be found'
    assert device._first_sentence(RuntimeError()) == "RuntimeError"


def test_driver_statuses():
    class Status(int):
        name = "CUDA_ERROR_OUT_OF_MEMORY"

    assert device._check((Status(0), 1, 2)) == (1, 2)
    with pytest.raises(RuntimeError, match="CUDA_ERROR_OUT_OF_MEMORY"):
        device._check((Status(2), 1))


def test_names_of_cuda_core_and_the_driver():
    """The interface as installed has what :class:`~consisti2v_rt.runtime.gpu.device.Gpu` calls."""
    core, driver = pytest.importorskip("cuda.core"), pytest.importorskip("cuda.bindings.driver")
    wanted = {
        core.Device: ("set_current", "create_stream", "allocate", "compute_capability", "name"),
        core.Stream: ("record", "wait", "sync", "handle"),
        core.Event: ("sync", "is_done", "__sub__"),
    }
    for kind, names in wanted.items():
        assert not [name for name in names if not hasattr(kind, name)], kind
    assert core.EventOptions(timing_enabled=True, blocking_sync=True)
    assert callable(core.LegacyPinnedMemoryResource().allocate)
    graphs = (("cuStreamBeginCapture", 2), ("cuStreamEndCapture", 1), ("cuGraphInstantiate", 2), ("cuGraphLaunch", 2))
    for name, arguments in (("cuMemcpyAsync", 4), ("cuMemsetD8Async", 4), ("cuMemGetInfo", 0), *graphs):
        assert getattr(driver, name).__doc__.split(")")[0].count(",") == max(arguments - 1, 0), name


def test_the_stand_in_has_the_driver_layer_s_methods(gpu):
    for name, method in inspect.getmembers(device.Gpu, inspect.isfunction):
        if name.startswith("_") or name == "driver_version":
            continue
        expected = [p for p in inspect.signature(method).parameters if p != "self"]
        assert list(inspect.signature(getattr(gpu, name)).parameters) == expected, name


def test_float32_is_float32():
    assert provider_options(7, "fp32")["use_tf32"] == "0" and provider_options(7, "fp16")["use_tf32"] == "1"
    assert provider_options(7, "fp32")["user_compute_stream"] == "7"


def test_the_host_stays_a_few_steps_ahead_and_tells_in_order(gpu):
    told: list[int] = []
    pacer = Pacer(gpu, told.append)
    pacer.start()
    done: list[int] = []
    for step in range(8):
        pacer.make_room()
        assert step - len(told) < IN_FLIGHT
        gpu.stream.push(lambda step=step: done.append(step))
        pacer.enqueued(step)
        # Nothing was waited for that did not have to be.
        assert len(done) == max(0, step + 1 - IN_FLIGHT) == len(told)
    pacer.drain()
    assert told == done == list(range(8)) and pacer.seconds() > 0


def test_only_missing_wheels_are_installed(tmp_path):
    import numpy

    for name in (f"numpy-{numpy.__version__}-cp311-cp311-any.whl", "Not_There-1.0-py3-none-any.whl"):
        with zipfile.ZipFile(tmp_path / name, "w"):
            pass
    assert [path.name for path in missing(tmp_path)] == ["Not_There-1.0-py3-none-any.whl"]
    assert distribution(Path("Not_There-1.0-py3-none-any.whl")) == ("not-there", "1.0")
