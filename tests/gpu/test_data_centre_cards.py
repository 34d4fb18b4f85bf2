"""H100 and H200: TensorRT for RTX knows no such card, and every advice leads to TensorRT or ONNX Runtime."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from consisti2v_rt import UserError
from consisti2v_rt.export.engines.libraries import check_machine, find_engine_backend
from consisti2v_rt.export.engines.targets import find_target
from consisti2v_rt.runtime.gpu import entry
from consisti2v_rt.runtime.gpu.cards import engine_backend_for
from consisti2v_rt.runtime.gpu.device import GpuStatus

H100 = GpuStatus(True, "NVIDIA H100, compute capability 9.0", "NVIDIA H100 80GB HBM3", "9.0", 80 << 30)
NO_GPU = GpuStatus(False, "no NVIDIA driver is installed")
TESTS = Path(__file__).parents[1]


def advised(sentence: str) -> set[str]:
    """The libraries that a sentence says to build with."""
    return set(re.findall(r"--backend ([\w-]+)", sentence))


def test_doctor_says_so_whatever_is_installed(monkeypatch):
    monkeypatch.setattr(entry, "probe", lambda: H100)
    found = entry.probe_engines("tensorrt-rtx")
    assert not found.usable and not found.failed, "no warning: it is not expected to start"
    assert advised(found.reason) == {"tensorrt"} and "[tensorrt]" in found.reason


@pytest.mark.parametrize("name", ["H100", "H200", "B200", "sm90", "sm100"])
def test_no_advice_goes_in_a_circle(name):
    target = find_target(name, NO_GPU)
    rtx, plain = (find_engine_backend(backend) for backend in ("tensorrt-rtx", "tensorrt"))
    with pytest.raises(UserError) as refused:
        check_machine(rtx, target, NO_GPU)
    assert advised(str(refused.value)) == {"tensorrt"} and "ONNX Runtime's CUDA provider" in str(refused.value)
    with pytest.raises(UserError) as refused:
        check_machine(plain, target, NO_GPU)
    assert "tensorrt-rtx" not in str(refused.value)
    here = GpuStatus(True, "", name, target.compute_capabilities[0], 80 << 30)
    check_machine(find_engine_backend(engine_backend_for(here.compute_capability)), find_target("current", here), here)


def test_an_rtx_card_is_still_offered_the_library_that_needs_no_gpu():
    assert engine_backend_for("8.9") == engine_backend_for("12.0") == "tensorrt-rtx"
    with pytest.raises(UserError, match="or use --backend tensorrt-rtx"):
        check_machine(find_engine_backend("tensorrt"), find_target("rtx4060", NO_GPU), NO_GPU)


@pytest.mark.parametrize("name", ["gpu/test_bundle_on_gpu.py", "engines/test_engines_on_gpu.py"])
def test_every_part_on_a_device_builds_with_the_library_of_its_card(name):
    calls = [
        node
        for node in ast.walk(ast.parse((TESTS / name).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "build_engines"
    ]
    assert calls and all("backend" in {word.arg for word in call.keywords} for call in calls)
