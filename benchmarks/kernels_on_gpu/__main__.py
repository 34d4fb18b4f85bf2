"""Time every CUDA kernel on this machine's GPU against plain torch, and write one JSON.

Temporal attention is also timed as an engine has it: our kernel is worth a plugin where it is faster than that.

``python -m consisti2v_rt.benchmarks.kernels_on_gpu --output kernels.json``

Both run as CUDA graphs on one stream and are timed with CUDA events, so neither pays for launches from Python. Needs an
NVIDIA GPU, the extra ``kernels`` and, for the plain formulations, a torch built for CUDA.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ...errors import UserError
from ...kernels.cuda.compile import compile_cubin
from ...kernels.cuda.launch import LoadedKernels
from ...runtime.commands.console import make_console
from ...runtime.gpu.device import probe
from ...runtime.install import install_hint
from ..bench.intervals import ratio_words
from ..bench.machine import versions
from ..bench.script import run_script
from ..bench.statistics import ratio_interval
from .cases import Case, cases
from .engine_attention import AttentionEngine, build_attention
from .stopwatch import Stopwatch


def main(
    output: Annotated[Path | None, typer.Option(help="JSON file for the record.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of each.")] = 50,
) -> None:
    """Time every CUDA kernel against plain torch on this machine's GPU."""
    run_script(output, lambda: measure(rounds), _show)


def measure(rounds: int) -> dict[str, Any]:
    """Microseconds of each kernel and of its plain formulation.

    Raises:
        UserError: there is no GPU here, or a package is missing.
    """
    status = probe()
    if not status.found:
        raise UserError(f"There is no GPU here ({status.reason}): run this on a machine with an NVIDIA GPU.")
    from cuda.core import Device

    device = Device(0)
    device.set_current()
    stream = device.create_stream()
    arch = "sm_" + status.compute_capability.replace(".", "")
    try:
        rows = [_measure(case, device, stream, arch, rounds) for case in cases()]
    except ModuleNotFoundError as error:
        raise UserError(f"The plain formulations need {error.name}: {install_hint('export')}.") from None
    return {
        "what": "CUDA kernels against plain torch, GPU time as CUDA graphs",
        "gpu": status.reason,
        "versions": versions(),
        "rounds": rounds,
        "kernels": rows,
    }


def _measure(case: Case, device: Any, stream: Any, arch: str, rounds: int) -> dict[str, Any]:
    stopwatch = Stopwatch(stream)
    kernels = LoadedKernels(case.source, compile_cubin(case.source, arch))
    buffers = {name: device.allocate(array.nbytes, stream=stream) for name, array in case.arrays.items()}
    stream.sync()
    for name, array in case.arrays.items():
        stopwatch.upload(array, int(buffers[name].handle))
    calls = []
    for entry, numbers in case.launches:
        taken = {argument.name for argument in kernels.source.entry_point(entry).arguments}
        calls.append((entry, {name: buffer for name, buffer in buffers.items() if name in taken} | numbers))

    def enqueue() -> None:
        for entry, values in calls:
            kernels.launch(stream, entry, **values)

    row: dict[str, Any] = {"name": case.name, "bytes_moved": case.bytes_moved}
    row["kernel_us"] = stopwatch.measure(enqueue, rounds)
    row["torch_us"] = _in_torch(case, stopwatch, stream, rounds)
    if case.engine is not None:
        row |= _in_engine(case.engine, buffers, stopwatch, stream, arch, rounds)
    for buffer in buffers.values():
        buffer.close()
    return row


def _in_engine(
    graph: bytes, buffers: dict[str, Any], stopwatch: Stopwatch, stream: Any, arch: str, rounds: int
) -> dict[str, Any]:
    """Microseconds of the same as an engine, or why there are none."""
    capability = f"{arch[3:-1]}.{arch[-1]}"
    try:
        addresses = {name: int(buffers[name].handle) for name in ("query", "key", "value", "out")}
        engine = AttentionEngine(build_attention(graph, capability), addresses)
    except UserError as error:
        return {"engine_us": None, "engine_refused": str(error)}
    return {"engine_us": stopwatch.measure(lambda: engine.enqueue(int(stream.handle)), rounds)}


def _in_torch(case: Case, stopwatch: Stopwatch, stream: Any, rounds: int) -> list[float] | None:
    """None where torch has no CUDA."""
    import torch

    if not torch.cuda.is_available():
        return None
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.ExternalStream(int(stream.handle))):
        tensors = {
            name: torch.from_numpy(array).cuda() for name, array in case.arrays.items() if array.dtype != "uint64"
        }
        return stopwatch.measure(lambda: case.in_torch(tensors), rounds)


def _show(record: dict[str, Any]) -> None:
    columns = ("kernel", "µs", "GB/s", "torch µs", "torch / kernel", "engine / kernel")
    table = Table(*columns, title=record["gpu"], title_justify="left")
    for row in record["kernels"]:
        own = statistics.median(row["kernel_us"])
        cells = [f"{own:.1f}", f"{row['bytes_moved'] / own / 1000:.0f}"]
        if row["torch_us"] is None:
            cells += ["no CUDA in torch", ""]
        else:
            plain = statistics.median(row["torch_us"])
            cells += [f"{plain:.1f}", _ratio(row["torch_us"], row["kernel_us"])]
        engine = row.get("engine_us")
        cells.append("" if engine is None else _ratio(engine, row["kernel_us"]))
        table.add_row(row["name"], *cells)
    make_console().print(table)


def _ratio(other: list[float], own: list[float]) -> str:
    """Of the medians, with its 95 % interval; one was timed after the other."""
    interval = ratio_interval(other, own, paired=False)
    return f"{statistics.median(other) / statistics.median(own):.2f}× ({ratio_words(interval)})"


if __name__ == "__main__":
    typer.run(main)
