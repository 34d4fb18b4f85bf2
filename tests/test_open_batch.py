"""The default export leaves the U-Net's batch open, so that every guidance mode runs without padding."""

from __future__ import annotations

from pathlib import Path

import pytest

from consisti2v_rt.benchmarks.cost.graph import read_graph
from consisti2v_rt.errors import UserError


def test_only_the_batch_is_open() -> None:
    pytest.importorskip("torch")
    from consisti2v_rt.export.random_model import random_model
    from consisti2v_rt.export.stages import stages, text_tensor_names

    model = random_model("tiny")
    names = text_tensor_names(model.unet)
    *others, unet = stages(model, 64, 48, None, dynamic=False)
    decoder = {"latents": {0: "frames"}, "image": {0: "frames"}}
    assert [stage.axes for stage in others if stage.axes] == [decoder], "and the decoder's frames"
    assert unet.axes == {name: {0: "rows"} for name in ("sample", "first_frame_latents", "noise_pred", *names)}
    assert unet.inputs["sample"].shape == (2, 4, 15, 8, 6), "one row would be taken for a constant"


@pytest.mark.parametrize(("rows", "dynamic", "example"), [(1, False, 1), (1, True, 2)])
def test_a_fixed_batch_and_open_sizes(rows: int, dynamic: bool, example: int) -> None:
    pytest.importorskip("torch")
    from consisti2v_rt.export.random_model import random_model
    from consisti2v_rt.export.stages import stages

    *_, unet = stages(random_model("tiny"), 64, 48, rows, dynamic)
    assert unet.inputs["sample"].shape[0] == example
    opened = unet.axes.get("sample", {})
    assert opened == ({0: "rows", 3: "latent_height", 4: "latent_width"} if dynamic else {})


def test_counting_takes_the_batch_it_is_given(tmp_path: Path) -> None:
    """Sizes that the exporter writes as formulas of the batch become numbers; other open sizes are refused."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    def write(last: int | str) -> Path:
        def value(name: str, *shape: int | str) -> object:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

        nodes = [helper.make_node("Flatten", ["x"], ["flat"], axis=2), helper.make_node("Relu", ["flat"], ["y"])]
        graph = helper.make_graph(nodes, "graph", [value("x", "rows", 16, last)], [value("y", "16*rows", last)])
        path = tmp_path / "graph.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), str(path))
        return path

    graph = read_graph(write(5), rows=3)
    assert [tuple(value.shape) for value in (graph.inputs[0], graph.outputs[0])] == [(3, 16, 5), (48, 5)]
    with pytest.raises(UserError, match="without --dynamic"):
        read_graph(write("height"), rows=3)
