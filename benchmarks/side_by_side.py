"""One U-Net forward: the published formulation in torch eager against the bundle's graph, same weights, same inputs.

``python -m consisti2v_rt.benchmarks.side_by_side --random-weights full --bundle full-bundle``

Both stay loaded in one process and run in turns; the first round is not counted. The ratio of medians is the speed-up,
and the relative L2 of the outputs stands beside it, so that speed without correctness cannot hide.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from ..export.random_model import random_model
from ..runtime.bundle import Bundle
from ..runtime.session import OnnxCpuSession
from .published import PublishedUNet

TEXT_LENGTH = 77


def main(
    bundle: Annotated[Path, typer.Option(help="Bundle of the same random weights.")],
    random_weights: Annotated[str, typer.Option(help="full, tiny, or a JSON file of U-Net options.")] = "tiny",
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
    rounds: Annotated[int, typer.Option(help="Counted rounds, after one that is not.")] = 3,
    output: Annotated[Path | None, typer.Option(help="JSON file for the record.")] = None,
) -> None:
    """Time one forward of both formulations in turns and compare their outputs."""
    manifest = Bundle.open(bundle, verify=False).manifest
    spec = manifest.stages["unet"]
    published, text = _published(random_weights, seed, manifest.model.rows or 2)
    session = OnnxCpuSession(bundle / spec.file, spec)
    session.inputs["timestep"][...] = 501
    if "frame_stride" in session.inputs:
        session.inputs["frame_stride"][...] = 3
    generator = np.random.default_rng(seed)
    for name in ("sample", "first_frame_latents"):
        session.inputs[name][...] = generator.standard_normal(session.inputs[name].shape, np.float32)
    _condition(bundle, session, text.numpy())
    sample, first_frame = (torch.from_numpy(session.inputs[name]) for name in ("sample", "first_frame_latents"))

    def run_published() -> np.ndarray[Any, Any]:
        with torch.no_grad():
            out: np.ndarray[Any, Any] = published(
                sample, 501, text, first_frame_latents=first_frame, frame_stride=3
            ).numpy()
        return out

    def run_session() -> np.ndarray[Any, Any]:
        session.run()
        return session.outputs["noise_pred"]

    times, outputs = _interleave({"published": run_published, "session": run_session}, rounds)
    difference = np.linalg.norm((outputs["session"] - outputs["published"]).astype(np.float64))
    record = {
        "what": f"one U-Net forward, batch {sample.shape[0]}, random weights {random_weights}, float32",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "consisti2v-rt")},
        "bundle_sha256": manifest.files[spec.file].sha256,
        "seconds": times,
        "median_seconds": {name: statistics.median(values) for name, values in times.items()},
        "speed_up": statistics.median(times["published"]) / statistics.median(times["session"]),
        "relative_l2": float(difference / np.linalg.norm(outputs["published"].astype(np.float64))),
    }
    _show(record)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _published(kind: str, seed: int, rows: int) -> tuple[PublishedUNet, torch.Tensor]:
    """The published formulation around the random weights, and text embeddings [rows, 77, text width]."""
    unet = random_model(kind, seed).take_unet()
    config = unet.config
    with torch.device("meta"):
        published = PublishedUNet({**config.to_dict()})
    published.load_state_dict(unet.state_dict(), assign=True)
    text = torch.randn(rows, TEXT_LENGTH, config.cross_attention_dim, generator=torch.Generator().manual_seed(seed))
    return published.eval(), text


def _condition(bundle: Path, session: OnnxCpuSession, text: np.ndarray[Any, Any]) -> None:
    """Fill the U-Net's text keys and values, row by row."""
    spec = Bundle.open(bundle, verify=False).manifest.stages["conditioning"]
    conditioning = OnnxCpuSession(bundle / spec.file, spec)
    for row, embeddings in enumerate(text):
        conditioning.inputs["text_embeddings"][0] = embeddings
        conditioning.run()
        for name, value in conditioning.outputs.items():
            session.inputs[name][row] = value[0]


def _interleave(
    runs: dict[str, Callable[[], np.ndarray[Any, Any]]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, np.ndarray[Any, Any]]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    outputs: dict[str, np.ndarray[Any, Any]] = {}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            outputs[name] = run()
            if number > 0:
                times[name].append(time.perf_counter() - started)
    return times, outputs


def _show(record: dict[str, Any]) -> None:
    table = Table("formulation", "median s", "min s", "max s", title=record["what"], title_justify="left")
    for name, values in record["seconds"].items():
        table.add_row(name, *(f"{f(values):.3f}" for f in (statistics.median, min, max)))
    console = Console()
    console.print(table)
    console.print(f"speed-up {record['speed_up']:.2f}x, relative L2 {record['relative_l2']:.1e}; {record['machine']}")


if __name__ == "__main__":
    typer.run(main)
