"""Products whose running sums are float16, as the tensor cores of a card may make them.

A tensor core multiplies 16 values at a time, adds the running sum and rounds the result to the type of its accumulator.
Kernels with float16 accumulators are twice as fast on GeForce cards, and a library that is left the choice may take
them. For a simulation (:mod:`.simulation`) every product becomes a function of such steps, the sum of 16 products in
float32. In which order a card takes them is not known: here convolutions go through all taps of 16 channels, then of
the next 16; attentions through the keys, with the largest score and the sum of weights so far in float32.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import product

import numpy as np
import onnx
import onnx_ir as ir

from .graph import OPSET

_DOMAIN = "float16_sums"
_FAR = 2**31
_BLOCK = "goes_on = Identity (going)  first = Mul (i, sixteen)  end = Add (first, sixteen)"
_COUNT = "more = Add (depth, fifteen)  blocks = Div (more, sixteen)  count = Squeeze (blocks)"
_MATMUL = f"""MatMul (a, b) => (y) {{
    depth = Shape <start = -1> (a)  {_COUNT}
    y = Loop (count, , zero) <body = step (int64 i, bool going, float[] sum) => (bool goes_on, float[] next) {{
        {_BLOCK}
        some_a = Slice (a, first, end, last)
        some_b = Slice (b, first, end, last_but_one)
        part = MatMul (some_a, some_b)
        exact = Add (sum, part)
        half = Cast <to = 10> (exact)
        next = Cast <to = 1> (half)
    }}>
}}"""
_GEMM = f"""Gemm (a, b, c) => (y) {{
    turned = Transpose <perm = [1, 0]> (b)
    unbiased = {_DOMAIN}.MatMul (a, turned)
    y = Add (unbiased, c)
}}"""
# q, k and v are [batch, heads, tokens, size].
_ATTENTION = f"""Attention (q, k, v, mask) => (y) {{
    turned = Transpose <perm = [0, 1, 3, 2]> (k)
    depth = Shape <start = -1> (turned)  {_COUNT}
    bias = Expand (mask, depth)
    top, weight, values = Loop (count, , lowest, zero, zero) <body = step (
        int64 i, bool going, float[] largest, float[] total, float[] sum
    ) => (bool goes_on, float[] largest_next, float[] total_next, float[] next) {{
        {_BLOCK}
        some_keys = Slice (turned, first, end, last)
        some_values = Slice (v, first, end, last_but_one)
        some_bias = Slice (bias, first, end, last)
        unmasked = MatMul (q, some_keys)
        scores = Add (unmasked, some_bias)
        largest_here = ReduceMax (scores, last)
        largest_next = Max (largest, largest_here)
        below = Sub (scores, largest_next)
        weights = Exp (below)
        drop = Sub (largest, largest_next)
        shrink = Exp (drop)
        total_before = Mul (total, shrink)
        total_here = ReduceSum (weights, last)
        total_next = Add (total_before, total_here)
        narrow = Cast <to = 10> (weights)
        rounded = Cast <to = 1> (narrow)
        part = MatMul (rounded, some_values)
        before = Mul (sum, shrink)
        exact = Add (before, part)
        half = Cast <to = 10> (exact)
        next = Cast <to = 1> (half)
    }}>
    y = Div (values, weight)
}}"""
_CONSTANTS = {
    "zero": "float {0}",
    "lowest": "float {-3e38}",
    "fifteen": "int64[1] {15}",
    "sixteen": "int64[1] {16}",
    "last": "int64[1] {-1}",
    "last_but_one": "int64[1] {-2}",
}


def sum_in_float16(model: ir.Model) -> int:
    """Make float16 products functions that round their running sum to float16 after every 16 products.

    A convolution in groups, and a Gemm other than x w^T + b, stays as it is; the export writes none.

    Returns:
        How many products and attentions were changed.
    """
    count = 0
    for node in list(model.graph):
        if node.outputs[0].dtype == ir.DataType.FLOAT16 and (text := _function_of(node)) is not None:
            name = text.partition(" ")[0]
            for each in (text, _MATMUL):
                function = _parsed(each)
                model.functions[function.identifier()] = function
            _call(model.graph, node, name)
            count += 1
    model.opset_imports[_DOMAIN] = 1
    return count


def _function_of(node: ir.Node) -> str | None:
    """The text of the function that a product becomes; None: it stays."""
    options = node.attributes
    if node.op_type == "MatMul":
        return _MATMUL
    if node.op_type == "Attention":
        return _ATTENTION
    if node.op_type == "Gemm" and options.get_int("transB", 0) and not options.get_int("transA", 0):
        return _GEMM
    if node.op_type == "Conv" and options.get_int("group", 1) == 1:
        kernel = tuple(node.inputs[1].shape.numpy()[2:])
        ones, none = (1,) * len(kernel), (0,) * len(kernel)
        given = {name: tuple(options[name].as_ints()) for name in ("strides", "dilations", "pads") if name in options}
        return _conv(kernel, given.get("strides", ones), given.get("dilations", ones), given.get("pads", none * 2))
    return None


def _conv(kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...], pads: tuple[int, ...]) -> str:
    """A convolution's function, for a kernel, strides and dilations by axis, and the edges before and behind."""
    rank = len(kernel)

    def constant(values: Iterable[int]) -> str:
        return f"Constant <value_ints = [{', '.join(map(str, values))}]> ()"

    named = {
        "edges": (0, 0, *pads[:rank], 0, 0, *pads[rank:]),
        "axes": range(1, rank + 2),
        "strides": (1, *strides),
        "flat": (0, 0, -1),
        "filter_axes": (1, 2),
        "filter_shape": (0, 0, *(1,) * rank),
        "bias_shape": (1, -1, *(1,) * rank),
    }
    steps = []
    for tap, place in enumerate(product(*map(range, kernel))):
        corner = [at * dilation for at, dilation in zip(place, dilations, strict=True)]
        # Counted from the end of the padded axis, so that its size need not be known.
        behind = [c - (k - 1) * d for c, k, d in zip(corner, kernel, dilations, strict=True)]
        named |= {f"corner{tap}": corner, f"far{tap}": [edge or _FAR for edge in behind]}
        named |= {f"tap{tap}": [tap], f"tap{tap}_end": [tap + 1]}
        steps.append(f"""
        start{tap} = Concat <axis = 0> (first, corner{tap})  stop{tap} = Concat <axis = 0> (end, far{tap})
        piece{tap} = Slice (padded, start{tap}, stop{tap}, axes, strides)
        from{tap} = Concat <axis = 0> (first, tap{tap})  to{tap} = Concat <axis = 0> (end, tap{tap}_end)
        some{tap} = Slice (filters, from{tap}, to{tap}, filter_axes)
        filter{tap} = Reshape (some{tap}, filter_shape)
        part{tap} = Conv (piece{tap}, filter{tap})
        exact{tap} = Add (sum{tap}, part{tap})
        half{tap} = Cast <to = 10> (exact{tap})  sum{tap + 1} = Cast <to = 1> (half{tap})""")
    name = "_".join(["Conv", *("x".join(map(str, entry)) for entry in (kernel, strides, dilations, pads))])
    return f"""{name} (x, w, b) => (y) {{
    {" ".join(f"{key} = {constant(values)}" for key, values in named.items())}
    depth = Shape <start = 1, end = 2> (w)  {_COUNT}
    filters = Reshape (w, flat)
    padded = Pad (x, edges)
    sums = Loop (count, , zero) <body = step (
        int64 i, bool going, float[] sum0
    ) => (bool goes_on, float[] sum{len(steps)}) {{
        {_BLOCK}{"".join(steps)}
    }}>
    bias = Reshape (b, bias_shape)
    y = Add (sums, bias)
}}"""


def _parsed(text: str) -> ir.Function:
    head, _, body = text.partition("{")
    constants = " ".join(
        f"{name} = Constant <value = {value}> ()"
        for name, value in _CONSTANTS.items()
        if re.search(rf"\b{name}\b", body)
    )
    imports = f'<opset_import: ["": {OPSET}, "{_DOMAIN}": 1], domain: "{_DOMAIN}">'
    return ir.from_proto(onnx.parser.parse_function(f"{imports} {head} {{ {constants} {body}"))


def _call(graph: ir.Graph, node: ir.Node, name: str) -> None:
    """Make a node call the function; what it leaves out, a bias or a mask, is 0."""
    node.op_type, node.domain = name, _DOMAIN
    node.attributes.clear()
    wanted = {"MatMul": 2, "Attention": 4}.get(name, 3)
    node.resize_inputs(wanted)
    if node.inputs[-1] is None:
        zero = f"{_DOMAIN}/zero"
        if zero not in graph.initializers:
            graph.register_initializer(ir.Value(name=zero, const_value=ir.tensor(np.zeros(1, np.float32), name=zero)))
        node.replace_input_with(wanted - 1, graph.initializers[zero])
