"""The protocols that mypy checks by are the libraries' own names: of TensorRT for RTX, and of TensorRT's bindings."""

from __future__ import annotations

import importlib.metadata
import typing
from typing import Any

import pytest

from consisti2v_rt.export.engines import api

CLASSES = {
    "Tensor": "ITensor",
    "Layer": "ILayer",
    "Network": "INetworkDefinition",
    "Profile": "IOptimizationProfile",
    "BuilderConfig": "IBuilderConfig",
    "HostMemory": "IHostMemory",
    "Builder": "Builder",
    "ParserError": "ParserError",
    "OnnxParser": "OnnxParser",
}
RTX_ONLY = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}


def names(protocol: Any) -> set[str]:
    """Attributes and methods that a protocol declares."""
    methods = {name for name in vars(protocol) if not name.startswith("_")}
    return methods | (set(typing.get_type_hints(protocol)) - {"__version__"})


def test_every_protocol_is_compared() -> None:
    found = {name for name, value in vars(api).items() if getattr(value, "_is_protocol", False)}
    assert found == {*CLASSES, "TensorRT", "Protocol"}


@pytest.mark.parametrize("protocol", CLASSES)
def test_tensorrt_rtx_has_them(protocol: str) -> None:
    library = pytest.importorskip("tensorrt_rtx")
    declared = names(getattr(api, protocol))
    assert declared and {name for name in declared if not hasattr(getattr(library, CLASSES[protocol]), name)} == set()
    assert all(hasattr(library, name) for name in names(api.TensorRT))


def test_tensorrt_has_them() -> None:
    """Its bindings cannot be imported without the library, so their symbols are read from the file."""
    try:
        files = importlib.metadata.files("tensorrt_cu13_bindings") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tensorrt_cu13_bindings is not installed")
    binary = next(file for file in files if file.name in ("tensorrt.so", "tensorrt.pyd"))
    content = bytes(binary.locate().read_bytes())  # type: ignore[attr-defined]
    declared = names(api.TensorRT).union(*(names(getattr(api, protocol)) for protocol in CLASSES))
    missing = {name for name in declared - RTX_ONLY if name.encode() + b"\0" not in content}
    assert missing == set()
