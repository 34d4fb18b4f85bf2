"""``consisti2v inspect --engine``: what is known about engines, and with a GPU what the library says itself."""

from __future__ import annotations

import json
import math
from typing import Any

from rich.table import Table

from ...errors import UserError
from ..bundle.bundle import Bundle
from ..bundle.engines import METADATA_VERSION, build_command, staleness
from ..bundle.manifest import EngineSpec
from ..files.guarded_read import parse_json
from ..gpu.device import probe
from .console import PlainConsole, make_table, size_text


def find_engines(bundle: Bundle, name: str) -> list[EngineSpec]:
    """Engines of a stage or a target, by name; "all" of them.

    Raises:
        UserError: there are none of that name.
    """
    engines = bundle.manifest.engines
    found = [engine for engine in engines if name in ("all", engine.stage, engine.target)]
    if not engines:
        raise UserError("the bundle has no engines: make some with 'consisti2v build BUNDLE --target rtx4060'.")
    if not found:
        names = dict.fromkeys([*(e.target for e in engines), *(e.stage for e in engines)])
        raise UserError(f"the bundle has no engine {name!r}: choose all, {', '.join(names)}.")
    return found


def engine_facts(bundle: Bundle, engine: EngineSpec) -> dict[str, Any]:
    """The facts written at build time, and what the engine inspector adds where a GPU can load the engine.

    Raises:
        UserError: the file is damaged, or another version's.
    """
    metadata: dict[str, Any] = {}
    if engine.metadata:
        try:
            metadata = parse_json(bundle.read(engine.metadata).tobytes())
            _check_metadata(metadata)
        except UserError:
            raise
        except ValueError as error:
            again = f"--target {engine.target} --precision {engine.precision} --stages {engine.stage}"
            raise UserError(
                f"{engine.metadata} cannot be read ({str(error).rstrip('.')}): build the engine again with "
                f"'consisti2v build BUNDLE {again}'."
            ) from None
    if probe().found:
        metadata["inspector"] = inspect_on_gpu(bundle, engine)
    return metadata


def _check_metadata(metadata: Any) -> None:
    """Refuse, with a ValueError, metadata of another version, or that lack what is shown."""
    if not isinstance(metadata, dict):
        raise ValueError("it holds no JSON object")
    version = metadata.get("metadata_version")
    if version != METADATA_VERSION or isinstance(version, bool):
        raise ValueError(f"metadata version {version!r}, this program knows {METADATA_VERSION}")

    def get(*path: str) -> Any:
        value: Any = metadata
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def are(values: Any, is_entry: Any) -> bool:
        return isinstance(values, list) and all(map(is_entry, values))

    later = {"product_accumulation", "value_accumulation"}  # not read by the first versions
    kinds, seconds = get("layers", "kinds"), metadata.get("build_seconds")
    sound = {
        "layers": _is_count(get("layers", "total")) and isinstance(kinds, dict) and are([*kinds.values()], _is_count),
        "attentions": are(get("attentions", "fused"), lambda name: isinstance(name, str))
        and are(get("attentions", "decomposed"), _is_decomposed),
        "build_seconds": _is_count(seconds) or (isinstance(seconds, float) and 0 <= seconds < math.inf),
        "weight_bytes": metadata.get("weight_bytes", "") is None or _is_count(metadata.get("weight_bytes")),
        "peak_host_bytes": metadata.get("peak_host_bytes", "") is None or _is_count(metadata.get("peak_host_bytes")),
        "activation_bytes": are(metadata.get("activation_bytes"), _is_count),
        # Of TensorRT for RTX, and not of engines built before it was read.
        "contents": "contents" not in metadata
        or all(
            isinstance(get("contents", name), dict) and are([*get("contents", name).values()], _is_count)
            for name in ("kernels", "bytes", "score_accumulation", *later & metadata["contents"].keys())
        ),
    }
    for name, holds in sound.items():
        if not holds:
            raise ValueError(f"its {name} are not what a build writes")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_decomposed(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("name", "reason"))


def inspect_on_gpu(bundle: Bundle, engine: EngineSpec) -> Any:
    """The engine inspector's JSON: layers as built, with their kernels.

    Raises:
        UserError: the engine's file is missing or damaged, or the library is missing or refuses it.
    """
    from ..gpu.tensorrt_session import load_module

    try:
        library = load_module(engine.backend)
    except ImportError as error:
        raise UserError(
            f"{engine.backend} cannot be imported ({error}): install it to look into its engines."
        ) from None
    bundle.require([engine.file], build_command(engine))
    runtime = library.Runtime(library.Logger(library.Logger.ERROR))
    loaded = runtime.deserialize_cuda_engine(bundle.read(engine.file).tobytes())
    if loaded is None:
        raise UserError(
            f"{library.__name__} {library.__version__} refuses {engine.file}: build it for this GPU with "
            "'consisti2v build BUNDLE --target current'."
        )
    return json.loads(loaded.create_engine_inspector().get_engine_information(library.LayerInformationFormat.JSON))


def engine_table(console: PlainConsole, bundle: Bundle, engine: EngineSpec, metadata: dict[str, Any]) -> Table:
    """One engine for people."""
    cards = ", ".join(engine.compute_capabilities)
    rows: list[tuple[str, str]] = [
        ("runs on", f"compute capability {cards}, {engine.platform or 'Linux and Windows'}"),
        ("built by", f"{engine.backend} {engine.version}, {engine.precision}{', stripped' if engine.stripped else ''}"),
        ("graph", staleness(engine, bundle.manifest) or "the one in the bundle"),
        ("plan", f"{engine.file}, {size_text(bundle.manifest.files[engine.file].bytes)}"),
    ]
    for kind, specs in (("in", engine.inputs), ("out", engine.outputs)):
        texts = [spec for spec in specs if "." in spec.name]
        rows += [(kind, f"{s.name} {s.dtype} [{', '.join(map(str, s.shape))}]") for s in specs if s not in texts]
        if texts:
            rows.append((kind, f"{len(texts)} text keys and values, {texts[0].dtype}"))
    for number, profile in enumerate(engine.profiles):
        shown = ", ".join(
            f"{name} {list(sizes.minimum)}" + (f" to {list(sizes.maximum)}" if sizes.maximum != sizes.minimum else "")
            for name, sizes in profile.inputs.items()
            if "." not in name
        )
        rows.append((f"profile {number}", shown or f"{profile.rows} rows, every size fixed"))
    table = make_table(console, f"{engine.stage} for {engine.target}")
    for name, value in rows + (_metadata_rows(metadata) if metadata else []):
        table.add_row(name, value)
    return table


def _metadata_rows(metadata: dict[str, Any]) -> list[tuple[str, str]]:
    attentions, kinds, peak = metadata["attentions"], metadata["layers"]["kinds"], metadata["peak_host_bytes"]
    memory = "" if peak is None else f", peak memory {size_text(peak)}"
    rows = [
        ("layers", f"{metadata['layers']['total']}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())),
        ("attentions", f"{len(attentions['fused'])} fused, {len(attentions['decomposed'])} decomposed"),
        *(
            ("decomposed", f"as expected: {reason}")
            for reason in dict.fromkeys(entry["reason"] for entry in attentions["decomposed"])
        ),
        ("build", f"{metadata['build_seconds']:.1f} s{memory}"),
    ]
    contents = metadata.get("contents")
    if contents and contents["kernels"]:
        profiles = max(len(metadata["activation_bytes"]), 1)
        kernels, moved = sum(contents["kernels"].values()), sum(contents["bytes"].values())
        shown = f"{kernels}, {size_text(moved)} of tensors" + (f", for {profiles} profiles" if profiles > 1 else "")
        rows.append(("kernels", shown))
        rows += [(kind, f"{n}, {size_text(contents['bytes'].get(kind, 0))}") for kind, n in contents["kernels"].items()]
        for what in ("score", "value", "product"):
            held = contents.get(f"{what}_accumulation", {})
            found = ", ".join(f"{kind} in {count} kernels" for kind, count in held.items())
            rows.append((f"{what}s add up in", found or "not told"))
    if metadata["weight_bytes"] is not None:
        rows.append(("weights", size_text(metadata["weight_bytes"])))
    if metadata["activation_bytes"]:
        rows.append(("GPU memory", "working " + ", ".join(map(size_text, metadata["activation_bytes"]))))
    if "inspector" in metadata:
        rows.append(("inspector", f"{len(metadata['inspector'].get('Layers', []))} layers as built; all of it: --json"))
    return rows
