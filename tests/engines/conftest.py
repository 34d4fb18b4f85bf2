"""A bundle of five tiny graphs made by hand, and a real tiny one, both built for compute capability 8.9."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from consisti2v_rt.export.engines.bundle_engines import build_engines
from consisti2v_rt.runtime.bundle.bundle import Bundle, hash_files
from consisti2v_rt.runtime.bundle.manifest import STAGES, Manifest, StageSpec, TensorSpec
from consisti2v_rt.runtime.bundle.typed_json import MANIFEST_NAME
from consisti2v_rt.tests.made_once import made_once

HEADS, LENGTH, HEAD_SIZE = 2, 8, 16


def write_attention(path: Path, elem_type: int, head_size: int = HEAD_SIZE) -> None:
    """One attention over x, batch ``rows``, its weights beside it: y = attention(x w, x, x)."""
    import onnx
    from onnx import helper, numpy_helper

    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    weight = np.eye(head_size).astype(dtype)
    shape = ["rows", HEADS, LENGTH, head_size]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"], name="project"),
        helper.make_node("Attention", ["q", "x", "x"], ["y"], name="only_attention", scale=0.25),
    ]
    values = [helper.make_tensor_value_info(name, elem_type, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "attention", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10),
        str(path),
        save_as_external_data=True,
        location=f"{path.name}.data",
        size_threshold=0,
    )


def make_toy_bundle(folder: Path, template: Manifest, precision: str = "fp32", head_size: int = HEAD_SIZE) -> Path:
    """Every stage is one attention; the graphs are said to be of `precision`."""
    from onnx import TensorProto

    elem_type, dtype = {"fp32": (TensorProto.FLOAT, "float32"), "fp16": (TensorProto.FLOAT16, "float16")}[precision]
    shape = ("rows", HEADS, LENGTH, head_size)
    specs = {}
    for stage in STAGES:
        file = f"{stage}/{stage}.onnx"
        write_attention(folder / file, elem_type, head_size)
        specs[stage] = StageSpec(
            file, precision, (TensorSpec("x", dtype, shape),), (TensorSpec("y", dtype, shape),), 23
        )
    (folder / "tokenizer").mkdir()
    (folder / template.tokenizer.file).write_text("{}")
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    model = dataclasses.replace(template.model, rows=None)
    variants = {} if precision == "fp32" else {precision: specs}
    files = hash_files(folder, names)
    manifest = dataclasses.replace(template, name="toy", model=model, stages=specs, variants=variants, files=files)
    (folder / MANIFEST_NAME).write_text(manifest.to_json())
    return folder


ToyMaker = Callable[..., Path]


@pytest.fixture
def make_toy(tmp_path: Path, demo_bundle: Path) -> ToyMaker:
    """(precision, head_size) -> a bundle; in half precision its graphs are its fp16 variant too."""
    template = Bundle.open(demo_bundle, verify=False).manifest

    def make(precision: str = "fp32", head_size: int = HEAD_SIZE) -> Path:
        return make_toy_bundle(tmp_path / f"toy-{precision}-{head_size}", template, precision, head_size)

    return make


@pytest.fixture
def toy_bundle(make_toy: ToyMaker) -> Path:
    return make_toy()


@pytest.fixture(scope="session")
def built_tiny_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in half precision with engines of all five stages for compute capability 8.9."""
    pytest.importorskip("tensorrt_rtx")

    def make(folder: Path) -> None:
        shutil.copytree(tiny_bundle, folder)
        build_engines(folder, "sm89", precision="fp16")

    return made_once(tmp_path_factory, "tiny-engines", make)


@pytest.fixture(scope="session")
def demo_bundle() -> Path:
    """In this folder: the demo bundle's stages with random weights. The demo model's own start was set by hand, with
    numbers that half precision does not hold.
    """
    return Path(__file__).parents[1] / "data" / "untrained_bundle"
