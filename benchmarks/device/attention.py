"""Time our temporal attention kernel beside the same layers as an engine has them: it is worth a plugin where it wins.

``python -m consisti2v_rt.benchmarks.device.attention --output kernels.json`` on a machine with an NVIDIA GPU. Both run
as CUDA graphs on one stream and are timed with CUDA events, so neither pays for launches from Python. The engine is
built and run as those of a bundle are.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ...errors import UserError, first_line
from ...export.engines.kernels import cubin
from ...export.engines.libraries import check_machine, find_engine_backend, load_library
from ...export.engines.plan import PlanRequest, build_plan
from ...export.engines.shapes import EngineShapes
from ...export.engines.targets import find_target
from ...kernels.cuda.launch import Kernels
from ...kernels.temporal_window import rotation_table, window_positions
from ...runtime.bundle.manifest import EngineSpec, StageSpec, TensorSpec
from ...runtime.commands.console import make_console, print_error
from ...runtime.gpu.cards import engine_backend_for
from ...runtime.gpu.device import Gpu, open_gpu, probe
from ...runtime.gpu.memory import DeviceArray, GpuMemory, SharedWorkspace, WeightResidency
from ...runtime.gpu.tensorrt_session import Engine, TensorRTSession, load_module
from ..bench.record import check_writable, write_text
from ..bench.statistics import ratio_interval, ratio_words

KERNEL = "temporal_window_attention"
CLIPS, FRAMES, HEADS = 2, 16, 8
LEVELS = ((32, 40), (16, 80), (8, 160))
"""Side of the latents and channels of a head, of the shipped model at 256x256 with text guidance."""
TENSORS = ("query", "key", "value", "out")
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
    """One level; ``kernel_us`` or ``engine_us`` is None where it does not run, and ``kernel_refused`` or
    ``engine_refused`` says why.
    """
    shape, channels = (CLIPS, FRAMES, side * side, HEADS * head_size), HEADS * head_size
    generator, memory = np.random.default_rng(0), GpuMemory(gpu)
    values = [generator.standard_normal(shape).astype(np.float16) for _ in TENSORS]
    arrays = {name: memory.upload(array) for name, array in zip(TENSORS, values, strict=True)}
    rotation = memory.upload(rotation_table(FRAMES, channels))

    def kernel() -> Callable[[], None]:
        architecture = "sm_" + gpu.compute_capability.replace(".", "")
        kernels = Kernels(gpu.stream, lambda name: cubin(name, architecture))
        sizes = {"clips": CLIPS, "frames": FRAMES, "height": side, "width": side, "heads": HEADS, "window": 1}
        addresses = {name: array.address for name, array in {**arrays, "rotation": rotation}.items()}
        return partial(kernels.launch, f"{KERNEL}_d{head_size}_f16", scale=head_size**-0.5, **addresses, **sizes)

    def engine() -> Callable[[], None]:
        graph = attention_graph(CLIPS, FRAMES, side, HEADS, head_size)
        plan, spec = build_attention(graph, shape, gpu.compute_capability)
        return attention_session(gpu, plan, spec, arrays).enqueue

    row: dict[str, Any] = {"side": side, "head_size": head_size}
    for name, make in (("kernel", kernel), ("engine", engine)):
        # One that fails ends neither the other nor the next level.
        try:
            row[f"{name}_us"] = _time(gpu, make(), rounds)
        except Exception as error:
            row |= {f"{name}_us": None, f"{name}_refused": first_line(error)}
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

    residency = rotation_table(frames, channels).astype(np.float16)
    cos, sin = residency[None, :, None, :, 0], residency[None, :, None, :, 1]

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
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, shape) for name in TENSORS]
    graph = helper.make_graph(nodes, "temporal_attention", values[:3], values[3:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    return bytes(model.SerializeToString())


def build_attention(graph: bytes, shape: tuple[int, ...], compute_capability: str) -> tuple[bytes, EngineSpec]:
    """The plan for one compute capability, built as the engines of a bundle are; TensorRT for RTX needs no GPU for it.
    The attention must be one kernel, or it does not build.

    Args:
        graph: of :func:`attention_graph`.
        shape: of each tensor.

    Raises:
        UserError: the library is missing, or does not build for the card.
    """
    target = find_target("sm" + compute_capability.replace(".", ""), probe())
    backend = find_engine_backend(engine_backend_for(compute_capability))
    check_machine(backend, target, probe())
    library: Any = load_library(backend)
    *inputs, output = (TensorSpec(name, "float16", shape) for name in TENSORS)
    shapes = EngineShapes(tuple(inputs), (output,), ())
    with tempfile.TemporaryDirectory() as folder:
        onnx, plan = Path(folder) / "unet.onnx", Path(folder) / "unet.plan"
        onnx.write_bytes(graph)
        request = PlanRequest("unet", onnx, shapes, backend, target)
        build_plan(library, request, plan, lambda phase, done, total: None)
        spec = EngineSpec(
            stage="unet",
            file=plan.name,
            target=target.name,
            backend=backend.name,
            version=library.__version__,
            precision="fp16",
            compute_capabilities=target.compute_capabilities,
            onnx_sha256="",
            inputs=shapes.inputs,
            outputs=shapes.outputs,
        )
        return plan.read_bytes(), spec


def attention_session(gpu: Gpu, plan: bytes, spec: EngineSpec, arrays: Mapping[str, DeviceArray]) -> TensorRTSession:
    """The plan as the runtime runs one, on these arrays.

    Raises:
        BackendError: the library refuses the plan.
    """
    module, stage = load_module(spec.backend), StageSpec("unet.onnx", "fp16", spec.inputs, spec.outputs, 23)
    engine = Engine(lambda: plan, spec, module, WeightResidency(gpu), Path(stage.file))
    session = TensorRTSession(gpu, engine, stage, {}, SharedWorkspace(gpu))
    for name, array in arrays.items():
        session.bind(name, array)
    return session


def _show(record: dict[str, Any]) -> None:
    for row in record["levels"]:
        words = []
        for name in ("kernel", "engine"):
            found, refused = row[f"{name}_us"], row.get(f"{name}_refused", "")
            words.append(refused if found is None else f"{name} {statistics.median(found):.1f} µs")
        if None not in (row["kernel_us"], row["engine_us"]):
            ratio = statistics.median(row["engine_us"]) / statistics.median(row["kernel_us"])
            interval = ratio_interval(row["engine_us"], row["kernel_us"], paired=False)
            words[-1] += f", engine / kernel {ratio:.2f}x ({ratio_words(interval)})"
        level = f"{row['side']}x{row['side']}, head size {row['head_size']}"
        make_console(soft_wrap=True).print(f"{level}: {'; '.join(words)}")


if __name__ == "__main__":
    typer.run(main)
