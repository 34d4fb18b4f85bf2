"""``consisti2v inspect``: a bundle as tables."""

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
from ..bundle.manifest import EXPERIMENTAL, LoraSpec, Manifest, TensorSpec
from ..files.guarded_read import parse_json
from ..request.presets import PRESETS, PUBLISHED
from ..text import PromptTokenizer
from .console import PlainConsole, echo, make_table, plain, size_text, table_console
from .engine_tables import engine_facts, engine_table, find_engines


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
    console = table_console()
    if bundle is None:
        if verify or json or engine is not None:
            raise UserError("name the bundle to inspect: a folder, or one of " + ", ".join(named_bundles()) + ".")
        for name, folder in named_bundles().items():
            console.print(f"{name}  {folder}", soft_wrap=True)
        console.print(f"bundles below {bundle_home()} have a name; {HOME_VARIABLE} sets another folder", soft_wrap=True)
        return
    opened = Bundle.open(bundle, verify=False)
    manifest = opened.manifest
    if engine is not None:
        found = find_engines(opened, engine)
        if json:
            echo(json_module.dumps([engine_facts(opened, one) for one in found], indent=2))
        else:
            for one in found:
                console.print(engine_table(console, opened, one, engine_facts(opened, one)))
    elif json:
        echo(json_module.dumps({**json_module.loads(manifest.to_json()), "digest": manifest.digest}, indent=2))
    else:
        console.print(_model_table(console, opened))
        console.print(_stage_table(console, manifest))
        if manifest.variants:
            console.print(_variant_table(console, opened))
        # On a line of its own, whole: it is for copying.
        echo(f"digest {manifest.digest}")
    lost = {} if verify else opened.lost_files()
    if lost:
        faults = ", ".join(f"{name} {fault}" for name, fault in lost.items())
        echo(f"lost or damaged: {plain(faults)}; make it again with 'consisti2v build'", err=True)
    if verify:
        started = time.perf_counter()
        opened.verify()
        PromptTokenizer(opened)  # its numbers are those of the text encoder
        total = size_text(sum(record.bytes for record in manifest.files.values()))
        seconds = time.perf_counter() - started
        echo(f"{len(manifest.files)} files, {total}, all as recorded ({seconds:.1f} s)", err=json)


def _model_table(console: PlainConsole, opened: Bundle) -> Table:
    manifest = opened.manifest
    model, came_from, init = manifest.model, manifest.provenance, manifest.frame_init
    recommended = manifest.recommended
    sizes = [(model.height, model.width), *model.sizes[1:]]
    size = f"{' or '.join(f'{width}x{height}' for height, width in sizes)} pixels, {model.frames} frames"
    if model.dynamic_size_multiple is not None:
        size += f"; any multiple of {model.dynamic_size_multiple} pixels"
    advice = {name: getattr(recommended, name) for name in PUBLISHED}
    settings = ", ".join(f"{name} {value}" for name, value in advice.items() if value is not None)
    rows = {
        "clip": size,
        "U-Net batch": f"{'any' if model.rows is None else model.rows} (guidance {model.guidance})",
        "latents": f"{model.latent_channels} channels, 1/{model.vae_scale_factor} of the pixels",
        "scheduler": ", ".join(f"{name} {value}" for name, value in manifest.scheduler.items()),
        "FrameInit": f"noise level {init.noise_level}, {init.filter}, d_s {init.d_s}, d_t {init.d_t}",
        "recommended": settings or "the published settings",
    }
    for name, known in (("known prompts", recommended.known_prompts), ("camera motions", recommended.camera_motions)):
        if known is not None:
            rows[name] = ", ".join(known) or "none"
    for name, preset in opened.presets.items():
        if preset != PRESETS[name]:
            rows[f"preset {name}"] = ", ".join(f"{setting} {value}" for setting, value in preset.items())
    rows |= {
        "weights": f"{came_from.source} ({came_from.revision}){'' if model.trained else ' - UNTRAINED'}",
        **({} if manifest.lora is None else {"LoRA": _lora(manifest.lora)}),
        "licence": came_from.licence,
        "made with": ", ".join(f"{name} {version}" for name, version in came_from.tools.items()),
    }
    table = make_table(console, f"bundle {manifest.name}")
    for row in rows.items():
        table.add_row(*row)
    return table


def _lora(lora: LoraSpec) -> str:
    return f"{', '.join(f'{file.name} x {file.scale:g}' for file in lora.files)} on {lora.base}"


def _stage_table(console: PlainConsole, manifest: Manifest) -> Table:
    table = make_table(console, "stages", "stage", "", "tensors", show_lines=True)
    for name, stage in manifest.stages.items():
        metadata = f"{stage.precision}, opset {stage.opset}\n{_folder_size(manifest, stage.file)}"
        table.add_row(name, metadata, f"{_tensors('in ', stage.inputs)}\n{_tensors('out', stage.outputs)}")
    for engine in manifest.engines:
        table.add_row(engine.stage, f"{engine.precision}, {engine.target}", f"{engine.backend} {engine.version}")
    return table


def _tensors(direction: str, specs: tuple[TensorSpec, ...]) -> str:
    # The text keys and values are named by module path; dozens of lines would say nothing more.
    plain = [spec for spec in specs if "." not in spec.name]
    lines = [f"{direction} {spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in plain]
    if len(plain) < len(specs):
        lines.append(f"{direction} {len(specs) - len(plain)} text keys and values")
    return "\n".join(lines)


def _folder_size(manifest: Manifest, file: str) -> str:
    folder = file.rsplit("/", 1)[0] + "/"
    return size_text(sum(record.bytes for path, record in manifest.files.items() if path.startswith(folder)))


def _variant_table(console: PlainConsole, bundle: Bundle) -> Table:
    """Graphs in other precisions: bytes, the largest relative L2 to float32, what activations were calibrated on."""
    columns = ("precision", "stage", "size", "relative L2 to float32", "activations in 8 bits")
    table = make_table(console, "other precisions", *columns)
    for precision, stages in bundle.manifest.variants.items():
        found = _losses(bundle, precision)
        title = f"{precision}, experimental" if precision in EXPERIMENTAL else precision
        for stage, spec in stages.items():
            entry = found.get(stage, {})
            calibrated = ""
            if spec.calibration is not None:
                on = spec.calibration
                count = entry.get("graph", {}).get("quantised_activations", "some")
                calibrated = f"{count}, calibrated on {on.name} ({on.samples} samples, {on.steps} steps each)"
            table.add_row(title, stage, _folder_size(bundle.manifest, spec.file), _worst(entry), calibrated)
    return table


def _losses(bundle: Bundle, precision: str) -> dict[str, Any]:
    # Damaged or gone, it is written anew with the graphs.
    try:
        content = bundle.read(f"variants/{precision}/losses.json", hashed=True).tobytes()
        stages: dict[str, Any] = parse_json(content)["stages"]
    except (ValueError, KeyError, TypeError):
        return {}
    return stages


def _worst(entry: dict[str, Any]) -> str:
    losses = entry.get("losses")
    if not losses:
        return "not recorded"
    rows = sorted({loss["rows"] for loss in losses if loss["rows"] is not None})
    batches = f", batch {', '.join(map(str, rows))}" if rows else ""
    seeds = len({loss["seed"] for loss in losses})
    sums = entry.get("graph", {}).get("float32_sums", 0)
    wide = f", {sums} residual sums in float32" if sums else ""
    return f"{max(loss['relative_l2'] for loss in losses):.1e} ({seeds} seed{'s' * (seeds > 1)}{batches}){wide}"
