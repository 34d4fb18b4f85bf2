"""``consisti2v inspect --engine``: what is known about engines, and with a GPU what the library says itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from rich.table import Table

from ...errors import UserError
from ..bundle.bundle import Bundle
from ..bundle.engine_facts import check_facts
from ..bundle.engine_match import build_command
from ..bundle.engine_source import staleness
from ..bundle.manifest import EngineSpec
from ..files.guarded_read import parse_json
from ..gpu.device import probe

ALL = "all"


def find_engines(bundle: Bundle, name: str) -> list[EngineSpec]:
    """Engines of a stage or a target, by name; "all" of them.

    Raises:
        UserError: there are none of that name.
    """
    engines = bundle.manifest.engines
    found = [engine for engine in engines if name in (ALL, engine.stage, engine.target)]
    if not found:
        if not engines:
            raise UserError("the bundle has no engines: make some with 'consisti2v build BUNDLE --target rtx4060'.")
        names = dict.fromkeys([*(e.target for e in engines), *(e.stage for e in engines)])
        raise UserError(f"the bundle has no engine {name!r}: choose {ALL}, {', '.join(names)}.")
    return found


def engine_facts(bundle: Bundle, engine: EngineSpec) -> dict[str, Any]:
    """The facts written at build time, and what the engine inspector adds where a GPU can load the engine.

    Raises:
        UserError: the file is damaged, or another version's.
    """
    facts: dict[str, Any] = {}
    if engine.facts:
        again = f"--target {engine.target} --precision {engine.precision} --stages {engine.stage}"
        remedy = f"build the engine again with 'consisti2v build BUNDLE {again}'"
        try:
            facts = parse_json(bundle.read(engine.facts).tobytes())
            check_facts(facts)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{engine.facts} cannot be read ({str(error).rstrip('.')}): {remedy}.") from None
    if probe().found:
        facts["inspector"] = inspect_on_gpu(bundle, engine)
    return facts


def inspect_on_gpu(bundle: Bundle, engine: EngineSpec) -> Any:
    """The engine inspector's JSON: layers as built, with their kernels.

    Raises:
        UserError: the engine's file is missing or damaged, or the library is missing or refuses it.
    """
    from ..gpu.tensorrt_session import load_module

    try:
        library = load_module(engine.flavour)
    except ImportError as error:
        raise UserError(
            f"{engine.flavour} cannot be imported ({error}): install it to look into its engines."
        ) from None
    bundle.require([engine.file], build_command(engine))
    loaded = library.Runtime(library.Logger(library.Logger.ERROR)).deserialize_cuda_engine(
        bundle.read(engine.file).tobytes()
    )
    if loaded is None:
        raise UserError(
            f"{library.__name__} {library.__version__} refuses {engine.file}: build it for this GPU with "
            "'consisti2v build BUNDLE --target current'."
        )
    return json.loads(loaded.create_engine_inspector().get_engine_information(library.LayerInformationFormat.JSON))


def engine_table(
    bundle: Bundle, engine: EngineSpec, facts: dict[str, Any], size: Callable[[int], str], style: dict[str, Any]
) -> Table:
    """One engine for people; `size` writes bytes, `style` is a :func:`~.table_style.table_style`."""
    table = Table(title=f"{engine.stage} for {engine.target}", show_header=False, **style)
    cards = ", ".join(engine.compute_capabilities)
    rows: list[tuple[str, str]] = [
        ("runs on", f"compute capability {cards}, {engine.platform or 'Linux and Windows'}"),
        ("built by", f"{engine.flavour} {engine.version}, {engine.precision}{', stripped' if engine.stripped else ''}"),
        ("graph", staleness(engine, bundle.manifest) or "the one in the bundle"),
        ("plan", f"{engine.file}, {size(bundle.manifest.files[engine.file].bytes)}"),
    ]
    for kind, specs in (("in", engine.inputs), ("out", engine.outputs)):
        plain = [spec for spec in specs if "." not in spec.name]
        rows += [(kind, f"{s.name} {s.dtype} [{', '.join(map(str, s.shape))}]") for s in plain]
        if len(plain) < len(specs):
            texts = [spec for spec in specs if "." in spec.name]
            rows.append((kind, f"{len(texts)} text keys and values, {texts[0].dtype}"))
    for number, profile in enumerate(engine.profiles):
        shown = ", ".join(
            f"{name} {list(sizes.minimum)}" + (f" to {list(sizes.maximum)}" if sizes.maximum != sizes.minimum else "")
            for name, sizes in profile.inputs.items()
            if "." not in name
        )
        rows.append((f"profile {number}", shown))
    for name, value in rows + _fact_rows(facts, size):
        table.add_row(name, value)
    return table


def _fact_rows(facts: dict[str, Any], size: Callable[[int], str]) -> list[tuple[str, str]]:
    if not facts:
        return []
    attentions, kinds = facts["attentions"], facts["layers"]["kinds"]
    reasons = dict.fromkeys(entry["reason"] for entry in attentions["decomposed"])
    rows = [
        ("layers", f"{facts['layers']['total']}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())),
        ("attentions", f"{len(attentions['fused'])} fused, {len(attentions['decomposed'])} decomposed"),
        *(("decomposed", f"as expected: {reason}") for reason in reasons),
        ("build", f"{facts['build_seconds']:.1f} s" + _peak(facts["peak_host_bytes"], size)),
    ]
    if facts["weight_bytes"] is not None:
        rows.append(("weights", size(facts["weight_bytes"])))
    if facts["activation_bytes"]:
        rows.append(("GPU memory", "working " + ", ".join(size(count) for count in facts["activation_bytes"])))
    if "inspector" in facts:
        rows.append(("inspector", f"{len(facts['inspector'].get('Layers', []))} layers as built; all of it: --json"))
    return rows


def _peak(peak: int | None, size: Callable[[int], str]) -> str:
    return "" if peak is None else f", peak memory {size(peak)}"
