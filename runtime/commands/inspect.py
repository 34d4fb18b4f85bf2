"""``consisti2v inspect``: a bundle as a table."""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..bundle import Bundle
from ..manifest import Manifest, TensorSpec
from ..text import PromptTokenizer
from .engine_tables import engine_facts, engine_table, find_engines
from .variant_table import variant_table


def inspect(
    bundle: Annotated[Path, typer.Argument(help="Folder made by 'consisti2v export'.")],
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file and compare.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print bundle.json as checked, with its digest.")] = False,
    engine: Annotated[
        str | None, typer.Option(help="Engines of a stage or target, or all: what is known about them.")
    ] = None,
) -> None:
    """Show what a bundle holds: model, stages, files, where it came from."""
    opened = Bundle.open(bundle, verify=False)
    manifest = opened.manifest
    if engine is not None:
        _show_engines(opened, engine, json)
    elif json:
        typer.echo(json_module.dumps({**json_module.loads(manifest.to_json()), "digest": manifest.digest}, indent=2))
    else:
        # Names of models and files may hold brackets: they are text, not markup.
        console = Console(markup=False, emoji=False)
        console.print(_model_table(manifest))
        console.print(_stage_table(manifest))
        if manifest.variants:
            console.print(variant_table(opened, _size))
        # On a line of its own, whole: it is for copying.
        typer.echo(f"digest {manifest.digest}")
    lost = {} if verify else opened.lost_files()
    if lost:
        told = ", ".join(f"{name} {fault}" for name, fault in lost.items())
        typer.echo(f"lost or damaged: {told}; make it again with 'consisti2v build'", err=True)
    if verify:
        started = time.perf_counter()
        opened.verify()
        PromptTokenizer(opened)  # its numbers are those of the text encoder
        total = sum(record.bytes for record in manifest.files.values())
        typer.echo(
            f"{len(manifest.files)} files, {_size(total)}, all as recorded ({time.perf_counter() - started:.1f} s)",
            err=json,
        )


def _show_engines(bundle: Bundle, name: str, as_json: bool) -> None:
    engines = find_engines(bundle, name)
    if as_json:
        typer.echo(json_module.dumps([engine_facts(bundle, engine) for engine in engines], indent=2))
        return
    console = Console(markup=False, emoji=False)
    for engine in engines:
        console.print(engine_table(bundle, engine, engine_facts(bundle, engine), _size))


def _model_table(manifest: Manifest) -> Table:
    model, came_from = manifest.model, manifest.provenance
    table = Table(title=f"bundle {manifest.name}", show_header=False, title_justify="left")
    size = f"{model.width}x{model.height} pixels, {model.frames} frames"
    if model.dynamic_size_multiple is not None:
        size += f"; any multiple of {model.dynamic_size_multiple} pixels"
    rows = "any" if model.rows is None else str(model.rows)
    tools = ", ".join(f"{name} {version}" for name, version in came_from.tools.items())
    scheduler = ", ".join(f"{name} {value}" for name, value in manifest.scheduler.items())
    init = manifest.frame_init
    for name, value in (
        ("clip", size),
        ("U-Net batch", f"{rows} (guidance {model.guidance})"),
        ("latents", f"{model.latent_channels} channels, 1/{model.vae_scale_factor} of the pixels"),
        ("scheduler", scheduler),
        ("FrameInit", f"noise level {init.noise_level}, {init.filter}, d_s {init.d_s}, d_t {init.d_t}"),
        ("weights", f"{came_from.source} ({came_from.revision}){'' if model.trained else ' - UNTRAINED'}"),
        ("licence", came_from.licence),
        ("made with", tools),
    ):
        table.add_row(name, value)
    return table


def _stage_table(manifest: Manifest) -> Table:
    table = Table("stage", "", "tensors", title="stages", title_justify="left", show_lines=True)
    for name, stage in manifest.stages.items():
        folder = stage.file.rsplit("/", 1)[0] + "/"
        size = sum(record.bytes for path, record in manifest.files.items() if path.startswith(folder))
        facts = f"{stage.precision}, opset {stage.opset}\n{_size(size)}"
        table.add_row(name, facts, f"{_tensors('in ', stage.inputs)}\n{_tensors('out', stage.outputs)}")
    for engine in manifest.engines:
        table.add_row(engine.stage, f"{engine.precision}, {engine.target}", f"{engine.flavour} {engine.version}")
    return table


def _tensors(direction: str, specs: tuple[TensorSpec, ...]) -> str:
    # The text keys and values are named by module path; dozens of lines would say nothing more.
    plain = [spec for spec in specs if "." not in spec.name]
    lines = [f"{direction} {spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in plain]
    if len(plain) < len(specs):
        lines.append(f"{direction} {len(specs) - len(plain)} text keys and values")
    return "\n".join(lines)


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.1f} {unit}"
