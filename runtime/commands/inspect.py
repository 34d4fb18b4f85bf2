"""``consisti2v inspect``: a bundle as a table."""

from __future__ import annotations

import json as json_module
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ...errors import UserError
from ..bundle.bundle import Bundle
from ..bundle.home import HOME_VARIABLE, bundle_home, named_bundles
from ..bundle.manifest import Manifest, RecommendedSettings, TensorSpec
from ..request.presets import PUBLISHED
from ..text import PromptTokenizer
from .console import echo, plain
from .engine_tables import engine_facts, engine_table, find_engines
from .table_style import table_console, table_style
from .variant_table import variant_table


def inspect(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="Folder made by 'consisti2v export', or a name; if absent, the names."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file and compare.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print bundle.json as checked, with its digest.")] = False,
    engine: Annotated[
        str | None, typer.Option(help="Engines of a stage or target, or all: what is known about them.")
    ] = None,
) -> None:
    """Show what a bundle holds: model, stages, files, where it came from."""
    if bundle is None:
        _list_names(verify or json or engine is not None)
        return
    opened = Bundle.open(bundle, verify=False)
    manifest = opened.manifest
    if engine is not None:
        _show_engines(opened, engine, json)
    elif json:
        echo(json_module.dumps({**json_module.loads(manifest.to_json()), "digest": manifest.digest}, indent=2))
    else:
        console = table_console()
        style = table_style(console)
        console.print(_model_table(manifest, style))
        console.print(_stage_table(manifest, style))
        if manifest.variants:
            console.print(variant_table(opened, _size, style))
        # On a line of its own, whole: it is for copying.
        echo(f"digest {manifest.digest}")
    lost = {} if verify else opened.lost_files()
    if lost:
        told = ", ".join(f"{name} {fault}" for name, fault in lost.items())
        echo(f"lost or damaged: {plain(told)}; make it again with 'consisti2v build'", err=True)
    if verify:
        started = time.perf_counter()
        opened.verify()
        PromptTokenizer(opened)  # its numbers are those of the text encoder
        total = sum(record.bytes for record in manifest.files.values())
        echo(
            f"{len(manifest.files)} files, {_size(total)}, all as recorded ({time.perf_counter() - started:.1f} s)",
            err=json,
        )


def _show_engines(bundle: Bundle, name: str, as_json: bool) -> None:
    engines = find_engines(bundle, name)
    if as_json:
        echo(json_module.dumps([engine_facts(bundle, engine) for engine in engines], indent=2))
        return
    console = table_console()
    for engine in engines:
        console.print(engine_table(bundle, engine, engine_facts(bundle, engine), _size, table_style(console)))


def _list_names(asked_more: bool) -> None:
    if asked_more:
        raise UserError("name the bundle to inspect: a folder, or one of " + ", ".join(named_bundles()) + ".")
    console = table_console()
    for name, folder in named_bundles().items():
        console.print(f"{name}  {folder}", soft_wrap=True)
    console.print(f"bundles below {bundle_home()} have a name; {HOME_VARIABLE} sets another folder", soft_wrap=True)


def _model_table(manifest: Manifest, style: dict[str, Any]) -> Table:
    model, came_from = manifest.model, manifest.provenance
    table = Table(title=f"bundle {manifest.name}", show_header=False, **style)
    size = f"{model.width}x{model.height} pixels, {model.frames} frames"
    if model.dynamic_size_multiple is not None:
        size += f"; any multiple of {model.dynamic_size_multiple} pixels"
    rows = "any" if model.rows is None else str(model.rows)
    tools = ", ".join(f"{name} {version}" for name, version in came_from.tools.items())
    scheduler = ", ".join(f"{name} {value}" for name, value in manifest.scheduler.items())
    init = manifest.frame_init
    advice = _recommendations(manifest.recommended)
    for name, value in (
        ("clip", size),
        ("U-Net batch", f"{rows} (guidance {model.guidance})"),
        ("latents", f"{model.latent_channels} channels, 1/{model.vae_scale_factor} of the pixels"),
        ("scheduler", scheduler),
        ("FrameInit", f"noise level {init.noise_level}, {init.filter}, d_s {init.d_s}, d_t {init.d_t}"),
        *advice.items(),
        ("weights", f"{came_from.source} ({came_from.revision}){'' if model.trained else ' - UNTRAINED'}"),
        ("licence", came_from.licence),
        ("made with", tools),
    ):
        table.add_row(name, value)
    return table


def _recommendations(recommended: RecommendedSettings) -> dict[str, str]:
    """Rows on how the model is best used: the settings that it recommends, the prompts and motions that it knows."""
    values = {name: getattr(recommended, name) for name in PUBLISHED}
    settings = [f"{name} {value}" for name, value in values.items() if value is not None]
    rows = {"recommended": ", ".join(settings) or "the published settings"}
    if recommended.known_prompts is not None:
        rows["known prompts"] = ", ".join(recommended.known_prompts) or "none"
    if recommended.camera_motions is not None:
        rows["camera motions"] = ", ".join(recommended.camera_motions) or "none"
    return rows


def _stage_table(manifest: Manifest, style: dict[str, Any]) -> Table:
    table = Table("stage", "", "tensors", title="stages", show_lines=True, **style)
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
