"""Temporal attention as an engine has it: what our kernel must beat before it is worth a plugin.

The graph is the export's own form between the projections: rotate, gather and join the neighbours, one Attention. It is
built alone by TensorRT for RTX, so that its time is that of these layers in a U-Net engine, at best.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...export.engines.libraries import find_flavour, load_library
from ...export.engines.messages import Messages, make_logger
from ...kernels.temporal_window_attention import rotation_table, window_positions

NEIGHBOURS = 8


def attention_graph(clips: int, frames: int, side: int, heads: int, head_size: int) -> bytes:
    """ONNX, opset 23: query, key, value -> out, all float16 [clips, frames, side * side, heads * head_size]."""
    from onnx import TensorProto, helper, numpy_helper

    positions, channels = side * side, heads * head_size
    shape, half = [clips, frames, positions, channels], channels // 2
    nodes: list[Any] = []
    constants: dict[str, NDArray[Any]] = {
        "halves": np.array([half, half], np.int64),
        "pairs": np.array([clips, frames, positions, half // 2, 2], np.int64),
        "joined": np.array([clips, frames, positions, half], np.int64),
        "even": np.array(0, np.int64),
        "odd": np.array(1, np.int64),
        "last": np.array([-1], np.int64),
        "scale": np.array(head_size**-0.25, np.float16),
        "neighbours": window_positions(side, side).reshape(-1),
        "window": np.array([clips, NEIGHBOURS, positions, channels], np.int64),
        "split": np.array([clips, -1, positions, heads, head_size], np.int64),
        "queries": np.array([clips * positions, heads, frames, head_size], np.int64),
        "keys": np.array([clips * positions, heads, frames + NEIGHBOURS, head_size], np.int64),
        "positions_first": np.array([clips, positions, frames, channels], np.int64),
    }
    turns = rotation_table(frames, channels).astype(np.float16)
    constants["cos"], constants["sin"] = (turns[None, :, None, :, part] for part in (0, 1))

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def rotated(name: str) -> str:
        nodes.append(helper.make_node("Split", [name, "halves"], [f"{name}_turning", f"{name}_still"], axis=3))
        pairs = add("Reshape", [f"{name}_turning", "pairs"], f"{name}_pairs")
        even, odd = (add("Gather", [pairs, part], f"{name}_{part}", axis=4) for part in ("even", "odd"))
        first = add(
            "Sub",
            [add("Mul", [even, "cos"], f"{name}_a"), add("Mul", [odd, "sin"], f"{name}_b")],
            f"{name}_first",
        )
        second = add(
            "Add",
            [add("Mul", [odd, "cos"], f"{name}_c"), add("Mul", [even, "sin"], f"{name}_d")],
            f"{name}_second",
        )
        stacked = [add("Unsqueeze", [part, "last"], f"{part}_wide") for part in (first, second)]
        turned = add("Reshape", [add("Concat", stacked, f"{name}_stack", axis=-1), "joined"], f"{name}_turned")
        return add("Concat", [turned, f"{name}_still"], f"{name}_rotated", axis=3)

    def with_window(name: str) -> str:
        first = add("Gather", [name, "even"], f"{name}_frame0", axis=1)
        near = add("Gather", [first, "neighbours"], f"{name}_near", axis=1)
        return add("Concat", [name, add("Reshape", [near, "window"], f"{name}_window")], f"{name}_all", axis=1)

    def per_position(name: str, form: str) -> str:
        heads_apart = add("Reshape", [name, "split"], f"{name}_heads")
        return add(
            "Reshape", [add("Transpose", [heads_apart], f"{name}_moved", perm=[0, 2, 3, 1, 4]), form], f"{name}_done"
        )

    query = add("Mul", [rotated("query"), "scale"], "query_scaled")
    key = add("Mul", [rotated("key"), "scale"], "key_scaled")
    operands = [
        per_position(query, "queries"),
        per_position(with_window(key), "keys"),
        per_position(with_window("value"), "keys"),
    ]
    attended = add("Attention", operands, "attended", scale=1.0)
    moved = add("Transpose", [attended], "attended_moved", perm=[0, 2, 1, 3])
    add("Transpose", [add("Reshape", [moved, "positions_first"], "attended_joined")], "out", perm=[0, 2, 1, 3])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, shape) for n in ("query", "key", "value", "out")]
    initializers = [numpy_helper.from_array(np.array(array, order="C"), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "temporal_attention", values[:3], values[3:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return bytes(model.SerializeToString())


def build_attention(graph: bytes, compute_capability: str) -> bytes:
    """The plan for one compute capability; needs no GPU. The attention must be one kernel, or it does not build.

    Raises:
        UserError: TensorRT for RTX is missing, or does not build for the card.
    """
    library: Any = load_library(find_flavour("tensorrt-rtx"))
    messages = Messages()
    logger = make_logger(library, messages)
    builder = library.Builder(logger)
    network = builder.create_network(1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = library.OnnxParser(network, logger)
    known = getattr(library.ComputeCapability, "SM" + compute_capability.replace(".", ""), None)
    if known is None:
        raise UserError(
            f"TensorRT for RTX {library.__version__} builds nothing for compute capability {compute_capability}."
        )
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(known, 0)
    plan = builder.build_serialized_network(network, config) if parser.parse(graph) else None
    if plan is None:
        raise UserError(f"TensorRT for RTX does not build the attention ({messages.reason()}).")
    return bytes(memoryview(plan))


class AttentionEngine:
    """A plan on this machine's GPU, its tensors at given addresses.

    Raises:
        UserError: TensorRT for RTX refuses the plan.
    """

    def __init__(self, plan: bytes, addresses: dict[str, int]) -> None:
        library: Any = load_library(find_flavour("tensorrt-rtx"))
        messages = Messages()
        self._runtime = library.Runtime(make_logger(library, messages))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise UserError(f"TensorRT for RTX refuses the plan of the attention ({messages.reason()}).")
        self._context = self._engine.create_execution_context()
        for name, address in addresses.items():
            self._context.set_tensor_address(name, address)

    def enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise RuntimeError("the attention's engine does not run")
