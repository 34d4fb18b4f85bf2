"""float32 accumulators: products whose operands are cast to float32, and their result back.

TensorRT for RTX folds the casts away: the kernels still read float16 and multiply it on the tensor cores, and the plan
says that they accumulate in float32 (``accumulation_type`` 2 instead of 0, which leaves it to the card's kernels; for
convolutions it says nothing). Attentions that are spelled out (:mod:`.spelled`) still become one kernel, whose second
product then accumulates in float32 too. On GeForce cards such products take twice as long, so that the form is taken
on request.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable

from onnx import ModelProto, NodeProto, TensorProto, helper, shape_inference

PRODUCTS = ("Conv", "Gemm", "MatMul")


def accumulate_in_float32(model: bytes) -> bytes:
    """A serialised graph whose float16 products stand between casts.

    Products of one input with several weights, such as queries, keys and values, become one with all weights side by
    side: the library merges them in any case, and would then compute in float32.

    Args:
        model: strongly typed, without the weights, which stay where they are.
    """
    parsed = ModelProto.FromString(model)
    graph = parsed.graph
    typed = shape_inference.infer_shapes(parsed).graph
    halves = {value.name for value in typed.value_info if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    halves |= {value.name for value in typed.output if value.type.tensor_type.elem_type == TensorProto.FLOAT16}
    columns = {weight.name: weight.dims[1] for weight in graph.initializer if len(weight.dims) == 2}
    groups = _by_input(graph.node, halves, columns)
    nodes: list[NodeProto] = []
    for node in graph.node:
        group = groups[node.input[0]] if node.op_type == "MatMul" and node.input[1] in columns else []
        if node.op_type not in PRODUCTS or node.output[0] not in halves:
            nodes.append(node)
        elif len(group) < 2:
            nodes += _between_casts(node)
        elif node is group[0]:
            widths = [columns[each.input[1]] for each in group]
            sizes = helper.make_tensor(f"{node.output[0]}/widths", TensorProto.INT64, [len(widths)], widths)
            graph.initializer.append(sizes)
            nodes += _merged(group, sizes.name)
    del graph.node[:]
    graph.node.extend(nodes)
    return parsed.SerializeToString()


def _by_input(
    nodes: Iterable[NodeProto], halves: Container[str], matrices: Container[str]
) -> dict[str, list[NodeProto]]:
    """Value -> float16 products of it with a matrix of weights."""
    found = defaultdict[str, list[NodeProto]](list)
    for node in nodes:
        if node.op_type == "MatMul" and node.output[0] in halves and node.input[1] in matrices:
            found[node.input[0]].append(node)
    return found


def _merged(products: list[NodeProto], sizes: str) -> list[NodeProto]:
    """One product for several of the same input: all weights side by side, and the result cut into theirs."""
    first, outputs = products[0], [node.output[0] for node in products]
    weights, joined = f"{outputs[0]}/weights", f"{outputs[0]}/joined"
    return [
        helper.make_node("Concat", [node.input[1] for node in products], [weights], name=f"Concat_{weights}", axis=1),
        *_between_casts(helper.make_node("MatMul", [first.input[0], weights], [joined], name=first.name)),
        helper.make_node("Split", [joined, sizes], outputs, name=f"Split_{joined}", axis=-1),
    ]


def _between_casts(node: NodeProto) -> list[NodeProto]:
    """A product with casts of its own before and behind it."""
    output = node.output[0]
    wide = NodeProto()
    wide.CopyFrom(node)
    wide.input[:] = [name and f"{output}/operand{index}" for index, name in enumerate(node.input)]
    wide.output[:] = [f"{output}/wide"]
    before = [_cast(name, to, TensorProto.FLOAT) for name, to in zip(node.input, wide.input, strict=True) if name]
    return [*before, wide, _cast(wide.output[0], output, TensorProto.FLOAT16)]


def _cast(name: str, output: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [name], [output], name=f"Cast_{output}", to=to)
