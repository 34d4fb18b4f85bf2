"""Time our temporal attention kernel beside the same layers as an engine has them: it is worth a plugin where it wins.

``python -m consisti2v_rt.benchmarks.device.attention --output kernels.json`` on a machine with an NVIDIA GPU. Both run
as CUDA graphs on one stream and are timed with CUDA events, so neither pays for launches from Python.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from ...errors import UserError, first_line
from ...export.engines.kernels import cubin
from ...export.engines.libraries import find_flavour, load_library
from ...export.engines.plan import Messages, PlanRequest, build_plan, make_logger
from ...export.engines.shapes import EngineShapes
from ...export.engines.targets import find_target
from ...kernels.cuda.launch import Kernels
from ...kernels.temporal_window import rotation_table, window_positions
from ...runtime.bundle.manifest import TensorSpec
from ...runtime.commands.console import make_console, print_error
from ...runtime.gpu.device import Gpu, open_gpu, probe
from ..bench.record import check_writable, write_text
from ..bench.statistics import ratio_interval, ratio_words

KERNEL = "temporal_window_attention"
CLIPS, FRAMES, HEADS = 2, 16, 8
LEVELS = ((32, 40), (16, 80), (8, 160))
"""Side of the latents and channels of a head, of the shipped model at 256x256 with text guidance."""
REPEATS = 20
"""How often the work stands in one graph: an event's resolution is half a microsecond."""


def main(
    output: Annotated[Path | None, typer.Option(help="JSON file for the record.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of each.")] = 50,
) -> None:
    """Time the temporal attention kernel against an engine on this machine's GPU."""
    try:
        if output is not None:
            check_writable(output)
        record = measure(rounds)
        _show(record)
        if output is not None:
            write_text(output, json.dumps(record, indent=2) + "\n")
    except UserError as error:
        print_error(error)
        raise typer.Exit(2) from None


def measure(rounds: int) -> dict[str, Any]:
    """Microseconds of each level, by our kernel and by an engine.

    Raises:
        UserError: there is no GPU here.
    """
    status = probe()
    if not status.found:
        raise UserError(f"There is no GPU here ({status.reason}): run this on a machine with an NVIDIA GPU.")
    levels = [measure_level(open_gpu(), side, head_size, rounds) for side, head_size in LEVELS]
    return {
        "what": "temporal attention: our kernel and an engine's layers, GPU time as CUDA graphs",
        "gpu": status.reason,
        "rounds": rounds,
        "levels": levels,
    }


def measure_level(gpu: Gpu, side: int, head_size: int, rounds: int) -> dict[str, Any]:
    """One level; ``engine_us`` is None where no engine can be had, and ``engine_refused`` says why."""
    shape, channels = (CLIPS, FRAMES, side * side, HEADS * head_size), HEADS * head_size
    generator = np.random.default_rng(0)
    arrays: dict[str, NDArray[Any]] = {}
    for name in ("query", "key", "value", "out"):
        arrays[name] = generator.standard_normal(shape).astype(np.float16)
    arrays["rotation"] = rotation_table(FRAMES, channels)
    blocks = {name: gpu.allocate(array.nbytes) for name, array in arrays.items()}
    for name, array in arrays.items():
        gpu.copy(blocks[name].address, array.ctypes.data, array.nbytes, gpu.stream)
    gpu.stream.sync()
    addresses = {name: block.address for name, block in blocks.items()}
    architecture = "sm_" + gpu.compute_capability.replace(".", "")
    kernels = Kernels(gpu.stream, lambda name: cubin(name, architecture))
    sizes = {"clips": CLIPS, "frames": FRAMES, "height": side, "width": side, "heads": HEADS, "window": 1}
    call = partial(kernels.launch, f"{KERNEL}_d{head_size}_f16", scale=head_size**-0.5, **addresses, **sizes)
    row: dict[str, Any] = {"side": side, "head_size": head_size, "kernel_us": _time(gpu, call, rounds)}
    try:
        plan = build_attention(attention_graph(CLIPS, FRAMES, side, HEADS, head_size), gpu.compute_capability)
        row["engine_us"] = _time(gpu, _engine(gpu, plan, addresses), rounds)
    except Exception as error:  # a library's fault at one level is a finding, and the other levels run
        row |= {"engine_us": None, "engine_refused": f"{first_line(error)}."}
    return row


def _time(gpu: Gpu, enqueue: Callable[[], None], rounds: int) -> list[float]:
    """Microseconds of one ``enqueue()`` in each round."""
    for _ in range(3):
        enqueue()
    gpu.stream.sync()

    def repeat() -> None:
        for _ in range(REPEATS):
            enqueue()

    graph = gpu.capture(repeat)
    graph.launch(gpu.stream)
    times = []
    for _ in range(rounds):
        start = gpu.record(gpu.stream)
        graph.launch(gpu.stream)
        end = gpu.record(gpu.stream)
        end.sync()
        times.append(1000 * (end - start) / REPEATS)
    return times


def attention_graph(clips: int, frames: int, side: int, heads: int, head_size: int) -> bytes:
    """The export's own form between the projections, ONNX opset 23: rotate, gather and join the neighbours, one
    Attention; query, key, value -> out, all float16 [clips, frames, side * side, heads * head_size].
    """
    from onnx import TensorProto, helper, numpy_helper

    positions, channels = side * side, heads * head_size
    nodes: list[Any] = []
    constants: list[Any] = []

    def op(kind: str, *inputs: Any, outputs: int = 1, name: str = "", **attributes: Any) -> Any:
        """A node; lists and arrays among its inputs become constants."""
        names = []
        for value in inputs:
            if not isinstance(value, str):
                array = np.array(value, np.int64 if isinstance(value, int | list) else None, order="C")
                constants.append(numpy_helper.from_array(array, f"constant_{len(constants)}"))
                value = constants[-1].name
            names.append(value)
        label = name or f"{kind}_{len(nodes)}"
        made = [label] if outputs == 1 else [f"{label}_{i}" for i in range(outputs)]
        nodes.append(helper.make_node(kind, names, made, name=label, **attributes))
        return made[0] if outputs == 1 else made

    turns = rotation_table(frames, channels).astype(np.float16)
    cos, sin = turns[None, :, None, :, 0], turns[None, :, None, :, 1]

    def rotated(x: str) -> str:
        turning, still = op("Split", x, [channels // 2, channels // 2], outputs=2, axis=3)
        pairs = op("Reshape", turning, [clips, frames, positions, channels // 4, 2])
        even, odd = (op("Gather", pairs, which, axis=4) for which in (0, 1))
        first = op("Sub", op("Mul", even, cos), op("Mul", odd, sin))
        second = op("Add", op("Mul", odd, cos), op("Mul", even, sin))
        stack = op("Concat", op("Unsqueeze", first, [-1]), op("Unsqueeze", second, [-1]), axis=-1)
        turned = op("Reshape", stack, [clips, frames, positions, channels // 2])
        return str(op("Mul", op("Concat", turned, still, axis=3), np.float16(head_size**-0.25)))

    def with_window(x: str) -> str:
        near = op("Gather", op("Gather", x, 0, axis=1), window_positions(side, side).reshape(-1), axis=1)
        return str(op("Concat", x, op("Reshape", near, [clips, 8, positions, channels]), axis=1))

    def per_position(x: str, tokens: int) -> str:
        split = op("Reshape", x, [clips, -1, positions, heads, head_size])
        moved = op("Transpose", split, perm=[0, 2, 3, 1, 4])
        return str(op("Reshape", moved, [clips * positions, heads, tokens, head_size]))

    query = per_position(rotated("query"), frames)
    key, value = (per_position(with_window(x), frames + 8) for x in (rotated("key"), "value"))
    moved = op("Transpose", op("Attention", query, key, value, scale=1.0), perm=[0, 2, 1, 3])
    op("Transpose", op("Reshape", moved, [clips, positions, frames, channels]), name="out", perm=[0, 2, 1, 3])
    shape = [clips, frames, positions, channels]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT16, shape) for n in ("query", "key", "value", "out")]
    graph = helper.make_graph(nodes, "temporal_attention", values[:3], values[3:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return bytes(model.SerializeToString())


def build_attention(graph: bytes, compute_capability: str) -> bytes:
    """The plan for one compute capability, built as a bundle's engines are; needs no GPU. The attention must be one
    kernel, or it does not build.

    Raises:
        UserError: TensorRT for RTX is missing, or does not build for the card.
    """
    flavour = find_flavour("tensorrt-rtx")
    library: Any = load_library(flavour)
    target = find_target("sm" + compute_capability.replace(".", ""), probe())
    with tempfile.TemporaryDirectory() as folder:
        path, plan = Path(folder) / "attention.onnx", Path(folder) / "attention.plan"
        path.write_bytes(graph)
        request = PlanRequest("attention", path, _shapes(graph), flavour, target)
        build_plan(library, request, plan, lambda *progress: None)
        return plan.read_bytes()


def _shapes(graph: bytes) -> EngineShapes:
    """The graph's tensors, whose sizes are all fixed."""
    import onnx

    model = onnx.load_from_string(graph).graph

    def specs(values: Any) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(value.name, "float16", tuple(size.dim_value for size in value.type.tensor_type.shape.dim))
            for value in values
        )

    return EngineShapes(specs(model.input), specs(model.output), ())


def _engine(gpu: Gpu, plan: bytes, addresses: dict[str, int]) -> Callable[[], None]:
    """What enqueues the plan on the GPU's stream, its tensors at these addresses and its working memory ours.

    Raises:
        UserError: TensorRT for RTX refuses the plan.
    """
    library: Any = load_library(find_flavour("tensorrt-rtx"))
    messages = Messages()
    runtime = library.Runtime(make_logger(library, messages))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise UserError(f"TensorRT for RTX refuses the plan of the attention ({messages.reason()}).")
    context = engine.create_execution_context(library.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None:
        raise UserError(f"TensorRT for RTX cannot run the plan of the attention ({messages.reason()}).")
    memory = gpu.allocate(max(int(engine.device_memory_size_v2), 1))
    context.set_device_memory(memory.address, memory.nbytes)
    # The context needs the others alive.
    kept = (runtime, engine, memory, context)
    for name in ("query", "key", "value", "out"):
        context.set_tensor_address(name, addresses[name])
    stream = int(gpu.stream.handle)

    def enqueue() -> None:
        if not kept[-1].execute_async_v3(stream):
            raise RuntimeError("the attention's engine does not run")

    return enqueue


def _show(record: dict[str, Any]) -> None:
    for row in record["levels"]:
        own, engine = statistics.median(row["kernel_us"]), row.get("engine_refused", "")
        if not engine:
            found = statistics.median(row["engine_us"])
            interval = ratio_interval(row["engine_us"], row["kernel_us"], paired=False)
            engine = f"engine {found:.1f} µs, engine / kernel {found / own:.2f}x ({ratio_words(interval)})"
        level = f"{row['side']}x{row['side']}, head size {row['head_size']}"
        make_console(soft_wrap=True).print(f"{level}: kernel {own:.1f} µs; {engine}")


if __name__ == "__main__":
    typer.run(main)
