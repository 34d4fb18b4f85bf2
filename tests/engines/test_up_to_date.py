"""``build`` with nothing to do: says so, loads nothing heavy and writes nothing; with something to do it does that."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt.export.engines import job, kernels
from consisti2v_rt.export.engines.bundle_engines import build_engines
from consisti2v_rt.export.events import Events
from consisti2v_rt.export.precision import recipe

pytestmark = pytest.mark.slow

pytest.importorskip("tensorrt_rtx")

HEAVY = ("torch", "tensorrt_rtx", "onnx", "onnxruntime", "openvino", "diffusers", "transformers")


def state(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_nothing_is_loaded_and_nothing_written(built_tiny_bundle: Path) -> None:
    """In a process of its own: what was imported is seen there."""
    before = state(built_tiny_bundle)
    code = (
        "import json, sys; from consisti2v_rt.cli import app\n"
        "try: app(sys.argv[1:])\nexcept SystemExit as end: assert not end.code, end.code\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    arguments = ["build", str(built_tiny_bundle), "--target", "SM_89"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    told, imported = done.stdout.splitlines()
    assert told == f"{built_tiny_bundle}  up to date: 5 engines for sm89" and done.stderr == ""
    assert json.loads(imported) == []
    assert state(built_tiny_bundle) == before


def test_what_is_lost_altered_or_asked_otherwise_is_built(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, consisti2v: Callable[..., Any]
) -> None:
    monkeypatch.setattr(kernels, "CALL_KERNELS", ("noise",))
    built: list[str] = []

    def build(**options: Any) -> list[str]:
        built.clear()
        arguments: dict[str, Any] = {"precision": "fp32", "stages": ["unet", "conditioning"]} | options
        arguments["events"] = Events(engine=lambda engine, metadata: built.append(engine.stage))
        engines = build_engines(toy_bundle, "sm89", **arguments)
        assert [engine.stage for engine in engines] == ["conditioning", "unet"]
        return list(built)

    assert build() == ["conditioning", "unet"] and build() == []
    plan = toy_bundle / "engines" / "sm89-tensorrt-rtx-fp32" / "unet.plan"
    plan.write_bytes(bytes(byte ^ 1 for byte in plan.read_bytes()))
    assert build() == ["unet"] and build() == []
    plan.unlink()
    assert build() == ["unet"] and build() == []
    assert build(dynamic=["rows=1:2:4"]) == ["conditioning", "unet"] and build(dynamic=["rows=1:2:4"]) == []
    (cubin,) = toy_bundle.rglob("*.cubin")
    cubin.write_bytes(b"damaged")
    assert build(dynamic=["rows=1:2:4"]) == [] and cubin.read_bytes().startswith(b"\x7fELF")
    monkeypatch.setattr(job, "FORM", job.FORM + 1)
    assert build(dynamic=["rows=1:2:4"]) == ["conditioning", "unet"], "another form of the graph"
    assert build(dynamic=["rows=1:2:4"]) == []
    monkeypatch.setattr(job, "_installed_version", lambda backend: "0.1")
    assert build(dynamic=["rows=1:2:4"]) == ["conditioning", "unet"], "another version of the library"


def test_the_numbers_of_element_types_are_those_of_onnx() -> None:
    from onnx import TensorProto

    types = (recipe._FLOAT16, recipe._BFLOAT16, recipe._INT8, recipe._FLOAT8E4M3FN)
    assert types == (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT8, TensorProto.FLOAT8E4M3FN)
