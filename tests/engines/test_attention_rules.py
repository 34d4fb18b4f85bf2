"""Which attentions TensorRT for RTX fuses, tried on graphs of one attention, and what is said of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consisti2v_rt import UserError
from consisti2v_rt.export.engines import attention
from consisti2v_rt.export.engines.libraries import find_engine_backend, load_library
from consisti2v_rt.export.engines.plan import Messages, PlanRequest, build_plan
from consisti2v_rt.export.engines.shapes import EngineShapes
from consisti2v_rt.export.engines.targets import TARGETS
from consisti2v_rt.runtime.bundle.manifest import ProfileSpec, ShapeRange, TensorSpec

pytest.importorskip("tensorrt_rtx")
helper = pytest.importorskip("onnx.helper")

OPEN = "no fused kernel takes one head of one row of open length"


Shape = tuple[int | str, ...]


def build(
    folder: Path, shape: Shape, smallest: tuple[int, ...], largest: tuple[int, ...], fix: bool = False
) -> dict[str, Any]:
    """One attention in half precision over x, its queries, keys and values made of the same rows. `fix`: the engine
    has one size, which the graph leaves open.
    """
    import onnx
    from onnx import TensorProto, numpy_helper

    weights = [numpy_helper.from_array(np.eye(16, dtype=np.float16) * n, f"w{n}") for n in (1, 2, 3)]
    nodes = [helper.make_node("MatMul", ["x", f"w{n}"], [f"x{n}"]) for n in (1, 2, 3)]
    nodes.append(helper.make_node("Attention", ["x1", "x2", "x3"], ["y"], name="only_attention", scale=0.25))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT16, list(shape)) for name in ("x", "y"))
    graph = helper.make_graph(nodes, "attention", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, str(folder / "one.onnx"))
    shape = largest if fix else shape
    x_spec, y_spec = (TensorSpec(name, "float16", shape) for name in ("x", "y"))
    profile = ProfileSpec(None, {"x": ShapeRange(smallest, largest, largest)})
    shapes = EngineShapes((x_spec,), (y_spec,), () if fix else (profile,))
    backend = find_engine_backend("tensorrt-rtx")
    request = PlanRequest("vae_decoder", folder / "one.onnx", shapes, backend, TARGETS["sm89"])
    return build_plan(load_library(backend), request, folder / "one.plan", lambda *progress: None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "smallest", "largest", "reasons"),
    [
        ((1, 1, "length", 16), (1, 1, 64, 16), (1, 1, 192, 16), [OPEN]),
        ((2, 1, "length", 16), (2, 1, 64, 16), (2, 1, 192, 16), []),
        ((1, 2, "length", 16), (1, 2, 64, 16), (1, 2, 192, 16), []),
        (("rows", 1, "length", 16), (1, 1, 64, 16), (3, 1, 192, 16), []),
        (("rows", 1, 64, 16), (1, 1, 64, 16), (3, 1, 64, 16), []),
    ],
    ids=["one head, one row", "two rows", "two heads", "open batch", "open batch alone"],
)
def test_an_open_length(
    tmp_path: Path,
    shape: tuple[int | str, ...],
    smallest: tuple[int, ...],
    largest: tuple[int, ...],
    reasons: list[str],
) -> None:
    """What is not said to be taken apart is one kernel, or it had not built."""
    found = build(tmp_path, shape, smallest, largest)["attentions"]
    assert [entry["reason"] for entry in found["decomposed"]] == reasons
    assert len(found["fused"]) + len(found["decomposed"]) == 1


def test_sizes_that_the_engine_fixes_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The VAE of a bundle with open sizes fuses in an engine for one size."""
    seen: list[tuple[int, ...]] = []
    real = attention._why_not_fused

    def spy(library: Any, layer: Any, *rest: Any) -> str | None:
        seen.append(tuple(layer.get_input(0).shape))
        return real(library, layer, *rest)

    monkeypatch.setattr(attention, "_why_not_fused", spy)
    size = (2, 1, 64, 16)
    found = build(tmp_path, ("rows", 1, "length", 16), size, size, fix=True)["attentions"]
    assert found["fused"] == ["only_attention"]
    assert seen == [size]


def test_the_rule_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it there is a plain sentence, with the attention's name where the library says it and without it."""
    monkeypatch.setattr(attention, "_why_not_fused", lambda *arguments: None)
    with pytest.raises(UserError) as refused:
        build(tmp_path, (1, 1, "length", 16), (1, 1, 64, 16), (1, 1, 192, 16))
    said = str(refused.value)
    assert "has no fused kernel" in said and said.endswith("): try another --precision or --target.")
    assert "http" not in said and "Myelin" not in said


def test_an_attention_that_the_library_does_not_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_why_not_fused", lambda *arguments: None)
    add = Messages.add

    def without_names(messages: Messages, severity: str, text: str) -> None:
        add(messages, severity, text.replace("only_attention", "it"))

    monkeypatch.setattr(Messages, "add", without_names)
    with pytest.raises(UserError, match=r"\(one of its attentions has no fused kernel at these sizes\): try another"):
        build(tmp_path, (1, 1, "length", 16), (1, 1, 64, 16), (1, 1, 192, 16))
