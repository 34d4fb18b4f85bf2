"""The driver layer without a driver: clean reasons, no GPU package imported, names that the real packages have."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from consisti2v_rt import UserError
from consisti2v_rt.benchmarks.device.__main__ import distribution, install, missing
from consisti2v_rt.runtime.gpu import device, onnx_cuda_session
from consisti2v_rt.runtime.gpu.in_flight import IN_FLIGHT, InFlightLimiter
from consisti2v_rt.runtime.gpu.onnx_cuda_session import left_on_processor, provider_options

GPU_PACKAGES = ("cuda", "tensorrt_rtx", "tensorrt", "nvmath", "torch")


@pytest.mark.slow
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


def test_an_older_cuda_core_is_named(monkeypatch):
    core = pytest.importorskip("cuda.core")
    monkeypatch.setattr(device, "_has_driver", lambda: True)
    monkeypatch.setattr(core, "__version__", "0.5.1")
    status = device.probe.__wrapped__()
    assert not status.found and status.reason.startswith("cuda-core 0.5.1 is installed, 1.0 or later is needed")


def test_driver_statuses():
    class Status(int):
        name = "CUDA_ERROR_OUT_OF_MEMORY"

    assert device._check((Status(0), 1, 2)) == (1, 2)
    with pytest.raises(UserError, match=r"CUDA_ERROR_OUT_OF_MEMORY.*nvidia-smi"):
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


def test_float32_is_float32():
    assert provider_options(7, "fp32")["use_tf32"] == "0" and provider_options(7, "fp16")["use_tf32"] == "1"
    assert provider_options(7, "fp32")["user_compute_stream"] == "7"


def test_the_host_stays_a_few_steps_ahead_and_tells_in_order(gpu, push_work):
    told: list[int] = []
    limiter = InFlightLimiter(gpu, told.append)
    limiter.start()
    done: list[int] = []
    for step in range(8):
        limiter.make_room()
        assert step - len(told) < IN_FLIGHT
        push_work(gpu.stream, lambda step=step: done.append(step))
        limiter.enqueued(step)
        # Nothing was waited for that did not have to be.
        assert len(done) == max(0, step + 1 - IN_FLIGHT) == len(told)
    limiter.drain()
    assert told == done == list(range(8)) and limiter.seconds() > 0


def test_only_missing_wheels_are_installed(tmp_path):
    import numpy

    for name in (f"numpy-{numpy.__version__}-cp311-cp311-any.whl", "Not_There-1.0-py3-none-any.whl"):
        with zipfile.ZipFile(tmp_path / name, "w"):
            pass
    assert [path.name for path in missing(tmp_path)] == ["Not_There-1.0-py3-none-any.whl"]
    assert distribution(Path("Not_There-1.0-py3-none-any.whl")) == ("not-there", "1.0")


def _wheel(folder: Path, name: str, number: str, files: dict[str, str]) -> None:
    info = f"{name}-{number}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-{number}-py3-none-any.whl", "w") as wheel:
        for path, text in (*files.items(), (f"{info}/RECORD", record)):
            wheel.writestr(path, text)


@pytest.mark.slow
def test_a_later_wheel_leaves_the_folders_it_shares_with_an_earlier_one(tmp_path):
    pytest.importorskip("pip")
    first, second, site = tmp_path / "first", tmp_path / "second", tmp_path / "site"
    for folder in (first, second):
        folder.mkdir()
    _wheel(first, "maker_one", "1.0", {"maker/one.py": "number = 1"})
    _wheel(second, "maker_two", "1.0", {"maker/two.py": "number = 2"})
    _wheel(second, "maker_one", "1.1", {"maker/one.py": "number = 3"})
    assert install(first, site) == {"maker-one": "1.0"}
    assert install(second, site) == {"maker-one": "1.1", "maker-two": "1.0"}
    assert (site / "maker" / "one.py").read_text() == "number = 3" and (site / "maker" / "two.py").exists()
    assert [path.name for path in site.glob("maker_one*")] == ["maker_one-1.1.dist-info"]
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second", "site"}


def test_layers_that_onnxruntime_leaves_on_the_processor(monkeypatch):
    import onnxruntime
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy"]
    nodes = [helper.make_node("MatMul", ["x", "x"], ["z"]), helper.make_node("Shape", ["z"], ["s"])]
    nodes.append(helper.make_node("Reshape", ["z", "s"], ["y"]))
    model = helper.make_model(
        helper.make_graph(nodes, "g", values[:1], values[1:]),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    graph = model.SerializeToString()
    told = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    assert left_on_processor(told) == {"MatMul": 1}
    monkeypatch.setattr(onnx_cuda_session, "PROVIDER", "CPUExecutionProvider")
    assert left_on_processor(told) == {}
    assert left_on_processor(object()) == {}, "an ONNX Runtime that does not tell"


def test_polygraphy_takes_the_library_of_the_engine():
    """In a process of its own, after the part for ONNX Runtime: what it chose stays."""
    pytest.importorskip("polygraphy")
    script = """
import polygraphy.backend.onnxrt
from consisti2v_rt.export.engines.compare import choose_library
choose_library("tensorrt-rtx")
from polygraphy.backend.trt import util
from polygraphy.mod.trt_importer import lazy_import_trt
print(lazy_import_trt().__version__)
"""
    trt = pytest.importorskip("tensorrt_rtx")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().splitlines()[-1] == trt.__version__, done.stdout + done.stderr
