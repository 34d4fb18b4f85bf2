"""LoRAs merged into the graphs of a bundle, without torch: a new bundle beside the old one."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...runtime.bundle.bundle import Bundle, hash_files
from ...runtime.bundle.home import named_bundles
from ...runtime.bundle.manifest import (
    LoraFileSpec,
    LoraSpec,
    Manifest,
    StageSpec,
    graph_sha256,
    graphs_sha256,
)
from ...runtime.bundle.stage_graphs import graph_files
from ...runtime.bundle.typed_json import MANIFEST_NAME
from ...runtime.files.guarded_read import MANIFEST, read_text
from ..bundle_parts import without_files
from ..new_bundle import new_bundle_folder
from ..precision.scaled_names import SCALED
from ..weight_map import FORMS, MappedWeight, read_weight_map
from .files import LoraRequest, LoraTensors, read_lora_file
from .layouts import total_deltas

Changes = dict[str, dict[str, NDArray[np.float32]]]
"""Stage -> initialiser -> what it holds from now on."""
_EIGHT_BITS = ("int8", "fp8")
# ONNX's numbers of the two half precisions.
_FLOAT16, _BFLOAT16 = 10, 16
# A weight's name in a half-precision graph says what was done to it.
_VARIANT_NAME = re.compile(rf"(?P<weight>.+?)({SCALED}(?P<factor>[0-9]+(\.[0-9]+)?(e-?[0-9]+)?))?(_b?float16)?")


def merge_into_bundle(
    path: str | os.PathLike[str],
    requests: Sequence[LoraRequest],
    output: Path,
    *,
    base: str | os.PathLike[str] | None = None,
    force: bool = False,
    on_notice: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write a bundle whose weights are those of `path` with LoRAs merged; equal arguments give equal bytes.

    A bundle that holds LoRAs already is not added to: the new one is made from its base. The merged numbers are those
    of an export with the same files, to float32 rounding.

    Args:
        path: a bundle, or its name.
        requests: files and scales, merged in this order.
        output: the new bundle's folder; as for an export.
        base: where `path` holds LoRAs, the bundle that it was made from; None: it is looked for.
        force: replace an `output` that holds engines or other precisions.
        on_notice: told what the new bundle does not take over, and why.

    Raises:
        UserError: a file or bundle cannot be used, or the base is not found. Nothing is written then.
    """
    output = Path(output).resolve()
    bundle = _base_of(Bundle.open(path), base, output)
    if output == bundle.path.resolve():
        raise UserError(f"{output} is the bundle whose weights are read: give the new bundle another folder.")
    mapped = read_weight_map(bundle)
    files = [read_lora_file(request.path) for request in requests]
    shapes = {layer: weight.shape for layer, weight in mapped.items()}
    added = total_deltas(zip(files, (request.scale for request in requests), strict=True), shapes)
    changes = _changes(bundle, mapped, added, on_notice)
    with new_bundle_folder(output, force, on_notice) as folder:
        # What was built and is lost is no loss of the weights: it is left out.
        manifest = without_files(bundle.manifest, bundle.lost_files())
        for name in manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.file(name), folder / name)
        damaged = [
            name for name, record in hash_files(folder, manifest.files).items() if manifest.files[name] != record
        ]
        if damaged:
            raise UserError(f"bundle file {damaged[0]} changed while it was copied: merge again.")
        stale: dict[str, str] = {}
        for stage, values in changes.items():
            _write_stage(bundle, manifest.stages[stage], values, folder)
            for precision in [name for name, graphs in manifest.variants.items() if stage in graphs]:
                graph = manifest.variants[precision][stage]
                reason = _write_variant(bundle, stage, precision, graph, values, folder)
                if reason is not None:
                    stale |= dict.fromkeys((name for name in graph_files(graph) if name in manifest.files), reason)
                    on_notice(
                        f"not taken over: the {precision} graph of {stage}, {reason}; make it again with 'consisti2v "
                        f"build BUNDLE --target TARGET --precision {precision}'"
                    )
        manifest = without_files(manifest, stale)
        manifest = replace(
            manifest, name=output.name, files=hash_files(folder, manifest.files), lora=_spec(bundle, files, requests)
        )
        manifest = _with_fitting_engines(manifest, on_notice)
        for path_there in [p for p in folder.rglob("*") if p.is_file()]:
            if path_there.relative_to(folder).as_posix() not in manifest.files:
                path_there.unlink()
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        Manifest.from_json(manifest.to_json())
    return output


def _spec(bundle: Bundle, files: Sequence[LoraTensors], requests: Sequence[LoraRequest]) -> LoraSpec:
    listed = tuple(
        LoraFileSpec(file.path.name, file.sha256, request.scale) for file, request in zip(files, requests, strict=True)
    )
    return LoraSpec(bundle.manifest.name, graphs_sha256(bundle.manifest), listed)


def _base_of(bundle: Bundle, named: str | os.PathLike[str] | None, output: Path) -> Bundle:
    """The bundle itself, or the one that its LoRAs were merged into."""
    lora = bundle.manifest.lora
    if lora is None:
        return bundle
    if named is not None:
        base = Bundle.open(named)
        if base.manifest.lora is not None or graphs_sha256(base.manifest) != lora.base_sha256:
            raise UserError(f"{base.path} is not the bundle that {bundle.path} was made from ({lora.base}).")
        return base
    beside = [folder for parent in (bundle.path.resolve().parent, output.parent) for folder in _folders(parent)]
    for folder in [*beside, *named_bundles().values()]:
        with suppress(UserError, OSError):
            manifest = Manifest.from_json(read_text(folder / MANIFEST_NAME, MANIFEST))
            if manifest.lora is None and graphs_sha256(manifest) == lora.base_sha256:
                return Bundle.open(folder)
    raise UserError(
        f"{bundle.path} holds LoRAs already, and the bundle that it was made from ({lora.base}) is neither beside it "
        "nor in the bundle folder: name it with --base."
    )


def _folders(parent: Path) -> list[Path]:
    return sorted(folder for folder in parent.iterdir() if (folder / MANIFEST_NAME).is_file())


def _changes(
    bundle: Bundle,
    mapped: Mapping[str, MappedWeight],
    added: Mapping[str, NDArray[np.float64]],
    on_notice: Callable[[str], None],
) -> Changes:
    closed = [layer for layer in added if mapped[layer].gate == 0]
    if closed:
        on_notice(f"{len(closed)} layers stay out of the video, because their gate is closed: {closed[0]}, ...")
    hidden = [layer for layer in added if mapped[layer].gate != 0 and not mapped[layer].places]
    if hidden:
        raise UserError(
            f"the graphs of {bundle.path} hold {hidden[0]} in no form of its own (simplified, or equal to another "
            "weight): merge this LoRA with 'consisti2v export MODEL --lora FILE'."
        )
    changes: Changes = {}
    for stage in bundle.manifest.stages:
        graph = bundle.graph(bundle.manifest.stages[stage])
        tensors = {tensor.name: tensor for tensor in graph.metadata.external}
        contents: dict[str, Any] | None = None
        for layer, delta in added.items():
            for place in mapped[layer].places:
                if place.stage != stage:
                    continue
                tensor = tensors.get(place.initializer)
                form = FORMS[place.form](mapped[layer].gate * delta)
                if tensor is None or tensor.shape != form.shape or tensor.elem_type != 1:
                    raise UserError(f"{bundle.path} does not hold {layer} as its map says: export it again.")
                contents = graph.weights() if contents is None else contents
                raw = contents[tensor.location][tensor.offset : tensor.offset + tensor.nbytes]
                merged = (raw.view(np.float32).reshape(tensor.shape) + form).astype(np.float32)
                if not np.isfinite(merged).all():
                    raise UserError(f"layer {layer} is not finite with these LoRAs: give smaller scales.")
                changes.setdefault(stage, {})[place.initializer] = merged
    return changes


def _write_stage(bundle: Bundle, graph: StageSpec, values: Mapping[str, NDArray[Any]], folder: Path) -> None:
    """Put initialisers into the copy of a graph's file of weights."""
    for tensor in bundle.graph(graph).metadata.external:
        if tensor.name in values:
            with (folder / Path(graph.file).parent / tensor.location).open("r+b") as file:
                file.seek(tensor.offset)
                file.write(np.ascontiguousarray(values[tensor.name]).tobytes())


def _write_variant(
    bundle: Bundle,
    stage: str,
    precision: str,
    graph: StageSpec,
    values: Mapping[str, NDArray[np.float32]],
    folder: Path,
) -> str | None:
    """Round the new weights into a half-precision graph; None, or why that cannot be done."""
    if precision in _EIGHT_BITS:
        return "whose 8-bit scales were chosen for the weights without LoRA"
    source, original = bundle.graph(graph), bundle.graph(bundle.manifest.stages[stage])
    tensors, plain = ({tensor.name: tensor for tensor in one.metadata.external} for one in (source, original))
    contents, originals = source.weights(), original.weights()
    rounded: dict[str, NDArray[Any]] = {}
    found = set()
    for name, tensor in tensors.items():
        match = _VARIANT_NAME.fullmatch(name)
        if match is None or match["weight"] not in values:
            continue
        weight, factor = match["weight"], match["factor"]
        found.add(weight)
        before, by = plain[weight], np.float32(factor or 1)
        raw = originals[before.location][before.offset : before.offset + before.nbytes].view(np.float32)
        stored = contents[tensor.location][tensor.offset : tensor.offset + tensor.nbytes].tobytes()
        plainly = tensor.shape == values[weight].shape and tensor.elem_type in (1, _FLOAT16, _BFLOAT16)
        if not plainly or _cast(raw * by, tensor.elem_type).tobytes() != stored:
            return f"which holds {name} in another form"
        rounded[name] = _cast(values[weight] * by, tensor.elem_type)
        if tensor.elem_type == _FLOAT16 and not np.isfinite(rounded[name]).all():
            return f"which cannot hold the new {name}"
    if found != values.keys():
        return f"which holds {min(values.keys() - found)} in another form"
    _write_stage(bundle, graph, rounded, folder)
    return None


def _cast(values: NDArray[np.float32], elem_type: int) -> NDArray[Any]:
    """float32 as float32, float16, or the bits of bfloat16, rounded to the nearest even."""
    if elem_type == _FLOAT16:
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    if elem_type == _BFLOAT16:
        bits = np.ascontiguousarray(values).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return values


def _with_fitting_engines(manifest: Manifest, on_notice: Callable[[str], None]) -> Manifest:
    """Without engines that hold the old weights; those without weights take the new ones when they are loaded."""
    lost = []
    for engine in manifest.engines:
        graphs = manifest.stages if engine.precision == "fp32" else manifest.variants.get(engine.precision, {})
        graph = graphs.get(engine.stage)
        if graph is None or graph_sha256(manifest, graph, weights=not engine.stripped) != engine.onnx_sha256:
            lost.append(engine)
    for target in sorted({engine.target for engine in lost}):
        stages = ", ".join(sorted({engine.stage for engine in lost if engine.target == target}))
        on_notice(
            f"not taken over: the engines of {stages} for {target}, which hold the weights without LoRA; make them "
            f"again with 'consisti2v build BUNDLE --target {target}' (with --strip they take new weights as they are)"
        )
    return without_files(
        manifest, {engine.file for engine in lost} | {engine.metadata for engine in lost if engine.metadata}
    )
