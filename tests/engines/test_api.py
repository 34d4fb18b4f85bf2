"""NVIDIA ships no stubs: every name that the code asks of a library is one of TensorRT for RTX, and of TensorRT."""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

import pytest

from consisti2v_rt.export.engines import attention, libraries, plan

CLASSES = {
    "tensor": "ITensor",
    "layer": "ILayer",
    "query": "ITensor",
    "value": "ITensor",
    "network": "INetworkDefinition",
    "profile": "IOptimizationProfile",
    "config": "IBuilderConfig",
    "builder": "Builder",
    "parser": "OnnxParser",
    "data": "IHostMemory",
}
RTX_ONLY = {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
CAST = {"attention"}
"""Of the class that a layer is cast to."""


def used() -> set[tuple[str, str]]:
    """(variable, attribute) wherever the code reads an attribute of one of these variables."""
    trees = [ast.parse(Path(str(module.__file__)).read_text()) for module in (attention, libraries, plan)]
    return {
        (node.value.id, node.attr)
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id in {*CLASSES, "library"} and not node.attr.startswith("__")
    }


def test_tensorrt_rtx_has_them() -> None:
    library = pytest.importorskip("tensorrt_rtx")
    asked = used()
    assert {variable for variable, _ in asked} == {*CLASSES, "library"}
    owners = {variable: getattr(library, name) for variable, name in CLASSES.items()} | {"library": library}
    missing = {(variable, name) for variable, name in asked if not hasattr(owners[variable], name)}
    assert {name for _, name in missing} == CAST and hasattr(library.IAttentionInputLayer, "attention")


def test_tensorrt_has_them() -> None:
    """Its bindings cannot be imported without the library, so their symbols are read from the file."""
    try:
        files = importlib.metadata.files("tensorrt_cu13_bindings") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("tensorrt_cu13_bindings is not installed")
    binary = next(file for file in files if file.name in ("tensorrt.so", "tensorrt.pyd"))
    content = bytes(binary.locate().read_bytes())  # type: ignore[attr-defined]
    names = {name for _, name in used()} | set(CLASSES.values())
    assert {name for name in names - RTX_ONLY if name.encode() + b"\0" not in content} == set()
