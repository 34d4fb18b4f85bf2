"""``--compare`` with a runner that refuses what polygraphy's does: a context of our engines that owns its memory."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from consisti2v_rt import UserError
from consisti2v_rt.export.engines import compare
from consisti2v_rt.export.engines.job import settle
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.manifest import EngineSpec

pytest.importorskip("polygraphy")


class Runner:
    """As polygraphy's ``TrtRunner``: by default its context is static, which the library does not make."""

    error: Exception | None = None
    scale = 1.0

    def __init__(self, load: Any, optimization_profile: int, allocation_strategy: str | None = None) -> None:
        self._strategy = allocation_strategy

    def __enter__(self) -> Runner:
        if self._strategy not in ("profile", "runtime"):
            raise RuntimeError("Invalid Context. See error log for details.")
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def infer(self, given: dict[str, Any]) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        outputs = compare._run_onnxruntime(GRAPH[0], given)
        return {name: array * self.scale for name, array in outputs.items()}


GRAPH: list[Any] = []


@pytest.fixture
def engine(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> EngineSpec:
    module = ModuleType("polygraphy.backend.trt")
    module.EngineFromBytes, module.TrtRunner = (lambda data: data), Runner  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "polygraphy.backend.trt", module)
    read = Bundle.read
    plan = np.zeros(4, np.uint8)
    monkeypatch.setattr(
        Bundle, "read", lambda self, name, *a, **o: plan if ".plan" in name else read(self, name, *a, **o)
    )
    job = settle(toy_bundle, "sm89", "tensorrt-rtx", "fp32", ["unet"], (), False)
    GRAPH[:] = [job.bundle.graph(job.bundle.manifest.stages["unet"])]
    return job.engine("unet", "1.7")


def test_every_profile_runs_on_memory_of_polygraphy(engine: EngineSpec, toy_bundle: Path) -> None:
    lines = list(compare.compare_engines(toy_bundle, [engine]))
    assert len(lines) == max(len(engine.profiles), 1)
    assert all("relative L2 to onnxruntime float32 0.0e+00" in line for line in lines)


def test_what_the_library_refuses_is_one_sentence(
    engine: EngineSpec, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "error", RuntimeError("CUDA error: out of memory\nmore lines"))
    with pytest.raises(UserError, match=r"cannot run the engine of unet \(CUDA error: out of memory\): build it again"):
        list(compare.compare_engines(toy_bundle, [engine]))


def test_an_engine_that_strays_is_refused(
    engine: EngineSpec, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "scale", 1.01)
    with pytest.raises(UserError, match=r"differs from ONNX Runtime by 1\.0e-02"):
        list(compare.compare_engines(toy_bundle, [engine]))
