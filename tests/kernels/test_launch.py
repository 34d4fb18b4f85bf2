"""What a loaded kernel hands to cuda.core; that cuda.core then launches it is what the gpu tests see."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from consisti2v_rt.kernels.cuda.launch import Kernels


@dataclass
class Recorder:
    """Stands for cuda.core's module functions; keeps what it was given."""

    loaded: list[tuple[bytes, str]] = field(default_factory=list)
    launched: list[tuple[Any, ...]] = field(default_factory=list)

    def load(self, cubin: bytes, *, name: str) -> Any:
        self.loaded.append((cubin, name))
        return SimpleNamespace(get_kernel=lambda entry: f"kernel {entry}")


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    recorder, module = Recorder(), ModuleType("cuda.core")
    module.ObjectCode = SimpleNamespace(from_cubin=recorder.load)
    module.LaunchConfig = lambda grid, block: (grid, block)
    module.launch = lambda *arguments: recorder.launched.append(arguments)
    monkeypatch.setitem(sys.modules, "cuda.core", module)
    return recorder


@pytest.fixture
def kernels() -> Kernels:
    return Kernels("queue", lambda source: f"cubin of {source}")


def test_arrays_numbers_and_null_pointers(recorder, kernels):
    kernels.launch("philox_normal", elements=5000, videos=2, draw=1, step=None, seeds=8192, normals=np.int64(4096))
    assert recorder.loaded == [("cubin of philox", "philox")]
    ((stream, config, kernel, *values),) = recorder.launched
    assert (stream, config, kernel) == ("queue", ((5, 2, 1), 256), "kernel philox_normal")
    assert values == [4096, 8192, 0, 1, 2, 5000]
    assert [type(value) for value in values] == [int, int, int, np.uint64, np.int32, np.int64]


def test_a_source_is_loaded_once_and_nothing_to_do_launches_nothing(recorder, kernels):
    arguments = {"videos": 2, "draw": 1, "step": None, "seeds": 8, "normals": 8}
    kernels.launch("philox_normal", elements=0, **arguments)
    assert recorder.launched == recorder.loaded == []
    for elements in (1, 2):
        kernels.launch("philox_normal", elements=elements, **arguments)
    assert len(recorder.loaded) == 1 and len(recorder.launched) == 2


def test_refusals(recorder, kernels):
    with pytest.raises(ValueError, match="Unknown kernel 'philox'"):
        kernels.launch("philox")
    with pytest.raises(ValueError, match="needs memory for seeds"):
        kernels.launch("philox_normal", elements=1, videos=1, draw=0, step=None, seeds=None, normals=8)
