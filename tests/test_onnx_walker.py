"""ONNX files looked through without onnx: what they refer to is found wherever it stands, and nothing hangs."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt.runtime.bundle import onnx_walker
from consisti2v_rt.runtime.bundle.onnx_walker import ExternalTensor, read_metadata

onnx = pytest.importorskip("onnx")
helper, TensorProto = onnx.helper, onnx.TensorProto


def external(name: str = "weight", location: str = "w.data", shape: tuple[int, ...] = (2, 3), **entries: str) -> Any:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def graph(nodes: list[Any] = [], tensors: list[Any] = [], name: str = "g") -> Any:  # noqa: B006
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 3, None])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1])
    return helper.make_graph(nodes or [helper.make_node("Identity", ["x"], ["y"])], name, [x], [y], tensors)


def model(*arguments: Any, **others: Any) -> Any:
    return helper.make_model(graph(*arguments), opset_imports=[helper.make_opsetid("", 23)], **others)


def metadata(found: Any) -> onnx_walker.GraphMetadata:
    return read_metadata(found.SerializeToString())


def refusal(found: Any) -> str:
    with pytest.raises(ValueError) as caught:
        read_metadata(found if isinstance(found, bytes) else found.SerializeToString())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    return str(caught.value)


def test_borders_and_weights():
    found = metadata(model([], [external(offset="64", length="24"), helper.make_tensor("small", 1, [1], [2.0])]))
    assert [(t.name, t.dtype, t.shape) for t in found.inputs] == [("x", "float32", ("rows", 3, None))]
    assert [(t.name, t.dtype, t.shape) for t in found.outputs] == [("y", "float16", (1,))]
    (tensor,) = found.external
    assert isinstance(tensor, ExternalTensor)
    assert (tensor.name, tensor.location, tensor.offset, tensor.nbytes) == ("weight", "w.data", 64, 24)
    assert found.initialisers == {"weight": (2, 3), "small": (1,)} and found.locations == ("w.data",)


@pytest.mark.parametrize("dims", [(2**63 - 1,), (3,), (-4,), (2, 3), (2**40, 2**40)])
@pytest.mark.parametrize("raw", [True, False])
def test_sizes_that_are_not_those_of_the_values(dims, raw):
    """A library would allocate them before it looks at the values."""
    values = {"raw_data": b"\0" * 16} if raw else {"float_data": [0.0] * 4}
    if not raw and min(dims) >= 0 and max(dims) < 2**32:
        pytest.skip("typed values are counted by the library, which allocates no more than their bytes")
    tensor = TensorProto(name="weight", data_type=TensorProto.FLOAT, dims=dims, **values)
    assert "other sizes than its values" in refusal(model([], [tensor]))
    constant = helper.make_node("Constant", [], ["y"], value=tensor)
    assert "other sizes than its values" in refusal(model([constant]))


@pytest.mark.parametrize("stage", ["text_encoder", "conditioning", "vae_encoder", "vae_decoder", "unet"])
def test_same_as_onnx_on_real_graphs(demo_bundle, stage):
    path = demo_bundle / stage / f"{stage}.onnx"
    expected, found = onnx.load(str(path), load_external_data=False).graph, read_metadata(path.read_bytes())
    assert {t.name for t in expected.input} == {t.name for t in found.inputs}
    assert found.initialisers == {t.name: tuple(t.dims) for t in expected.initializer}
    places = {t.name: {e.key: e.value for e in t.external_data} for t in expected.initializer if t.data_location}
    assert {t.name for t in found.external} == places.keys()
    for tensor in found.external:
        assert str(tensor.nbytes) == places[tensor.name]["length"]
        assert str(tensor.offset) == places[tensor.name]["offset"]


def sparse(tensor: Any) -> Any:
    indices = helper.make_tensor("indices", TensorProto.INT64, [1], [0])
    return onnx.SparseTensorProto(values=tensor, indices=indices, dims=[4])


def in_subgraph(tensor: Any) -> Any:
    return model([helper.make_node("If", ["x"], ["y"], then_branch=graph([], [tensor]), else_branch=graph())])


def in_graph_list(tensor: Any) -> Any:
    node = helper.make_node("If", ["x"], ["y"])
    node.attribute.append(helper.make_attribute("branches", [graph([], [tensor])]))
    return model([node])


def in_function(tensor: Any) -> Any:
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    function = helper.make_function("", "f", ["x"], ["y"], [node], [helper.make_opsetid("", 23)])
    return model(functions=[function])


def in_function_default(tensor: Any) -> Any:
    function = helper.make_function("", "f", ["x"], ["y"], [], [helper.make_opsetid("", 23)])
    function.attribute_proto.append(helper.make_attribute("value", tensor))
    return model(functions=[function])


def in_sparse_initialiser(tensor: Any) -> Any:
    found = model()
    found.graph.sparse_initializer.append(sparse(tensor))
    return found


def in_deep_subgraph(tensor: Any) -> Any:
    inner = graph([helper.make_node("Constant", [], ["y"], value=tensor)])
    for _ in range(3):
        inner = graph([helper.make_node("If", ["x"], ["y"], then_branch=inner)])
    return helper.make_model(inner)


@pytest.mark.parametrize(
    "place",
    [
        in_subgraph,
        in_graph_list,
        in_function,
        in_function_default,
        in_sparse_initialiser,
        in_deep_subgraph,
        lambda t: model([helper.make_node("Constant", [], ["y"], value=t)]),
        lambda t: model([helper.make_node("Constant", [], ["y"], sparse_value=sparse(t))]),
        lambda t: model([helper.make_node("F", ["x"], ["y"], values=[t])]),
    ],
)
def test_files_named_elsewhere_than_by_the_main_graph(place):
    assert "no initialiser of its main graph, has values in another file" in refusal(place(external()))


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (external(location=""), "does not say in which file"),
        (external(offset="-1"), "the offset of tensor 'weight' in its file is no number"),
        (external(length="1e3"), "the length of tensor"),
        (external(length="25"), "takes 24 bytes, and 25 in its file"),
        (external(prepacked_0="1|2|3"), "has the key 'prepacked_0'"),
        (external(shape=(-2, 3)), "cannot have its values"),
    ],
)
def test_places_that_are_none(tensor, says):
    assert says in refusal(model([], [tensor]))


def test_places_given_twice_or_in_contradiction():
    tensor = external()
    tensor.external_data.add(key="location", value="other.data")
    assert "has the key 'location', or has it twice" in refusal(model([], [tensor]))
    tensor = external()
    tensor.ClearField("data_location")
    assert "says both" in refusal(model([], [tensor]))
    assert "is there twice" in refusal(model([], [external(), external(location="other")]))
    # A message in two parts is merged by protobuf, and half a reference would be in each.
    found = model([], [external()])
    twice = found.SerializeToString() + onnx.ModelProto(graph=graph()).SerializeToString()
    assert "a graph in two parts" in refusal(twice)


@pytest.mark.parametrize("domain", ["com.microsoft", "evil", "ai.onnx.ml", "ai.onnx\0"])
def test_foreign_operators(domain):
    node = helper.make_node("Do", ["x"], ["y"], domain=domain)
    assert f"the domain {domain!r}" in refusal(model([node]))
    assert f"the domain {domain!r}" in refusal(model([helper.make_node("If", ["x"], ["y"], b=graph([node]))]))
    function = helper.make_function(domain, "f", ["x"], ["y"], [], [helper.make_opsetid("", 23)])
    assert f"the domain {domain!r}" in refusal(model(functions=[function]))
    metadata(model([helper.make_node("Identity", ["x"], ["y"], domain="ai.onnx")]))


def test_no_graph_at_all():
    for content in (b"", b"\0", b"\xff" * 100, b"graph", b"PK\x03\x04", b"\x08\x08"):
        refusal(content)
    assert "ONNX Runtime's own format" in refusal(b"\x08\x00\x00\x00ORTM" + bytes(100))


def test_depth_and_work_are_bounded(monkeypatch):
    inner = graph()
    for _ in range(12):
        inner = graph([helper.make_node("If", ["x"], ["y"], then_branch=inner)])
    assert "nested more than 8 deep" in refusal(helper.make_model(inner))
    monkeypatch.setattr(onnx_walker, "MAX_FIELDS", 1000)
    assert "more than 1000 fields" in refusal(model([helper.make_node("Identity", ["x"], ["y"])] * 1000))
    # The product of a million sizes would take minutes.
    assert "more than 16 sizes" in refusal(model([], [helper.make_tensor("w", 1, [1] * 2000, [1.0])]))


def mutations(content: bytes, count: int, seed: int) -> list[bytes]:
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(draw.choice((1, 1, 2, 8))):
            at, kind = draw.randrange(len(changed) or 1), draw.randrange(4)
            changed = changed or bytearray(1)
            if kind == 0:
                changed[at] ^= 1 << draw.randrange(8)
            elif kind == 1:
                changed[at : at + draw.randrange(1, 9)] = b""
            elif kind == 2:
                changed[at:at] = draw.randbytes(draw.randrange(1, 9))
            else:
                changed = changed[: at + 1]
        found.append(bytes(changed))
    return found


def test_damaged_graphs_never_break_it(demo_bundle):
    """Refused in a few words or read, each quickly; and what ONNX itself reads holds no reference that was not seen."""
    contents = [
        (demo_bundle / "conditioning" / "conditioning.onnx").read_bytes(),
        in_subgraph(helper.make_tensor("w", 1, [1], [1.0])).SerializeToString(),
        model([], [external(offset="0", length="24")]).SerializeToString(),
    ]
    started, refused = time.perf_counter(), 0
    for number, content in enumerate(contents):
        for changed in mutations(content, 300, number):
            try:
                found = read_metadata(changed)
            except ValueError as error:
                refused += 1
                assert "\n" not in str(error)
                continue
            theirs = onnx.ModelProto()
            try:
                theirs.ParseFromString(changed)
            except Exception:
                continue
            seen = {tensor.name for tensor in found.external}
            assert {t.name for t in theirs.graph.initializer if t.data_location} <= seen
            assert {node.domain for node in theirs.graph.node} <= {"", "ai.onnx"}
    assert refused > 100 and time.perf_counter() - started < 30


def test_locations_that_leave_the_folder(tmp_path: Path):
    from consisti2v_rt import UserError
    from consisti2v_rt.runtime.bundle.graph_source import GraphSource

    (tmp_path / "secret").write_bytes(bytes(64))
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    locations = ("../secret", str(tmp_path / "secret"), "link", "a\0b", "a/../../secret", "..\\secret", "C:secret")
    for location in (*locations, "./w.data", "*/_ORT_MEM_ADDR_/*", "x" * 5000, "", "none"):
        path = folder / "g.onnx"
        path.write_bytes(model([], [external(location=location)]).SerializeToString())
        with pytest.raises(UserError) as caught:
            GraphSource.of(path).weights()
        assert "\n" not in str(caught.value) and "\0" not in str(caught.value) and len(str(caught.value)) < 400
    (folder / "w.data").write_bytes(bytes(23))
    path.write_bytes(model([], [external(location="w.data")]).SerializeToString())
    with pytest.raises(UserError, match=r"from behind the end of .w\.data."):
        GraphSource.of(path).weights()
