"""Model -> bundle: every stage exported, compared with torch, hashed, and put in place at once."""

from __future__ import annotations

import dataclasses
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..errors import UserError
from ..kernels.guidance import BRANCHES
from ..runtime.bundle.bundle import hash_files
from ..runtime.bundle.graph_source import GraphSource
from ..runtime.bundle.manifest import (
    FrameInitDefaults,
    Manifest,
    ModelSpec,
    Provenance,
    StageSpec,
    TokenizerSpec,
)
from ..runtime.bundle.recommended import check_recommended
from ..runtime.bundle.tokenizer_rules import check_tokenizer_json
from ..runtime.bundle.typed_json import MANIFEST_NAME
from .new_bundle import new_bundle_folder
from .onnx_graph import Parity, compare_with_torch, stage_spec, torch_reference, write_graph
from .part_configs import TEXT_LENGTH
from .request import ANY_GUIDANCE, check_cache_branch, check_request, settle_size, size_multiple
from .source_model import SourceModel
from .stages import dynamic_sizes, stages
from .unet.gate import GatedResidual
from .unet.simplified_text import simplify_and_measure
from .weight_map import WEIGHT_MAP, MappedWeight, find_places, map_to_json

_TOOLS = ("consisti2v-rt", "torch", "onnx", "onnxscript", "onnxruntime", "diffusers", "transformers")
_TOKENIZER_FILE = "tokenizer/tokenizer.json"


@dataclass(frozen=True)
class StageReport:
    """Result of one stage."""

    name: str
    seconds: float
    bytes: int
    parity: Parity
    """With torch, on random inputs, through ONNX Runtime."""


def write_bundle(
    model: SourceModel,
    output: str | os.PathLike[str],
    *,
    height: int | None = None,
    width: int | None = None,
    guidance: str = ANY_GUIDANCE,
    dynamic: bool = False,
    sizes: tuple[tuple[int, int], ...] = (),
    precision: str = "fp32",
    cache_branch: int | None = None,
    text_attention: str = "full",
    force: bool = False,
    on_stage_start: Callable[[str], None] = lambda name: None,
    on_stage_end: Callable[[StageReport], None] = lambda report: None,
    on_loss: Callable[[str, float], None] = lambda option, relative_l2: None,
    on_notice: Callable[[str], None] = lambda line: None,
) -> Path:
    """Export a model to a bundle.

    The bundle is made in a temporary folder beside `output` and renamed when complete: a stopped export leaves the old
    bundle or none. Other exports to `output` and builds into the bundle there are waited for, and wait for this one.
    The model's modules are released as they are exported (a full-size one would not fit in memory twice): do not use
    `model` afterwards.

    Args:
        model: from :func:`load_model` or :func:`random_model`.
        output: the bundle's folder; an existing bundle is replaced, any other folder is refused.
        height, width: pixels, multiples of the VAE's factor (8); with `dynamic`, of 8 times 2 per U-Net level. None:
            the size that the model was trained at.
        guidance: any leaves the U-Net's batch open; text, both or none fix it at 2, 3 or 1 rows.
        dynamic: leave the batch and the size open (slower in engines).
        sizes: height and width of each size that engines are built for and ``fit="auto"`` chooses from, instead of
            `height` and `width`; the first is the default. It leaves batch and size open, as `dynamic` does.
        precision: fp32.
        cache_branch: also a shallow U-Net for feature caching, cut at this skip (0: the outermost).
        text_attention: full (published) or mean, which simplifies it; see :mod:`.unet.simplified_text`.
        force: also replace a bundle that holds engines, graphs in other precisions or a calibration.
        on_stage_start, on_stage_end: progress.
        on_loss: told the measured loss of an option that is not exact.
        on_notice: told who is waited for.

    Raises:
        UserError: sizes or recommended settings that do not fit, an `output` that is not a bundle or holds what would
            be lost, or a stage that
            differs from torch.
    """
    output = Path(output).resolve()  # the folder itself, by its name: not ".", not a link to it
    config = model.unet.config
    latent_multiple = 2 ** (config.levels - 1)
    check_request(output, guidance, precision, text_attention, force=force)
    if sizes:
        dynamic, (height, width) = True, sizes[0]
    height, width = settle_size(config, model.vae_scale_factor, height, width, dynamic)
    check_cache_branch(config, cache_branch)
    if text_attention == "mean":
        sides = height // model.vae_scale_factor, width // model.vae_scale_factor
        on_loss("text attention mean", simplify_and_measure(model.unet, *sides))
    rows = None if dynamic else BRANCHES.get(guidance)
    model_spec = ModelSpec(
        frames=config.n_frames,
        height=height,
        width=width,
        latent_channels=config.in_channels,
        vae_scale_factor=model.vae_scale_factor,
        vae_scaling_factor=float(model.vae.config.scaling_factor),
        rows=rows,
        guidance="text" if guidance == ANY_GUIDANCE else guidance,
        dynamic_size_multiple=size_multiple(config, model.vae_scale_factor, True) if dynamic else None,
        uses_frame_stride=config.use_frame_stride_condition,
        trained=model.trained,
        unet_config=config.to_dict(),
        cache_branch=cache_branch,
        text_attention=text_attention,
        sizes=sizes,
    )
    provenance = Provenance(model.source, model.revision, model.licence, {tool: version(tool) for tool in _TOOLS})
    scheduler, recommended = dataclasses.asdict(model.scheduler), model.recommended
    check_recommended(recommended, scheduler, "the model")
    with new_bundle_folder(output, force, on_notice) as folder:
        tokenizer = _write_tokenizer(model, folder)
        specs: dict[str, StageSpec] = {}
        mapped = _mapped_weights(model)
        open_sizes = dynamic_sizes(latent_multiple, model.vae_scale_factor)
        exports = stages(model, height, width, rows, dynamic, cache_branch=cache_branch)
        # From here on only the stages hold the modules, and each is let go after its export.
        del model
        for stage in exports:
            on_stage_start(stage.name)
            started = time.perf_counter()
            file = f"{stage.name}/{stage.name}.onnx"
            path = folder / file
            reference = torch_reference(stage)
            write_graph(stage, path, open_sizes)
            for layer, place in find_places(stage.name, GraphSource.of(path), _weights(stage.module, mapped)):
                mapped[layer].places.append(place)
            specs[stage.name] = stage_spec(stage, reference, file, precision)
            name = stage.name
            parity = compare_with_torch(path, specs[name], reference, stage, f"{width}x{height}")
            for other in sizes[1:] if stage.axes else ():
                resized = stage.at_size(_dims(*other, model_spec.vae_scale_factor))
                named = f"{other[1]}x{other[0]}"
                found = compare_with_torch(path, specs[name], torch_reference(resized), resized, named)
                parity = max(parity, found, key=lambda one: one.relative_l2)
            del stage
            gc.collect()
            size = sum(f.stat().st_size for f in path.parent.iterdir())
            on_stage_end(StageReport(name, time.perf_counter() - started, size, parity))
        (folder / WEIGHT_MAP).write_text(map_to_json(mapped), encoding="utf-8")
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        manifest = Manifest(
            name=output.name,
            model=model_spec,
            tokenizer=tokenizer,
            scheduler=scheduler,
            frame_init=FrameInitDefaults(),
            stages=specs,
            provenance=provenance,
            recommended=recommended,
            files=hash_files(folder, names),
        )
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        Manifest.from_json(manifest.to_json())
    return output


def _dims(height: int, width: int, factor: int) -> dict[str, int]:
    """Open sizes of the stages, by name."""
    latents = {"latent_height": height // factor, "latent_width": width // factor}
    return {"height": height, "width": width} | latents


def _write_tokenizer(model: SourceModel, folder: Path) -> TokenizerSpec:
    tokenizer = model.tokenizer
    path = folder / _TOKENIZER_FILE
    path.parent.mkdir()
    content = tokenizer.backend_tokenizer.to_str()
    try:
        check_tokenizer_json(content)
    except ValueError as error:
        raise UserError(f"the model's tokenizer cannot be exported ({error}): give a CLIP tokenizer.") from None
    path.write_text(content, encoding="utf-8")
    return TokenizerSpec(_TOKENIZER_FILE, TEXT_LENGTH, int(tokenizer.pad_token_id), str(tokenizer.pad_token))


def _mapped_weights(model: SourceModel) -> dict[str, MappedWeight]:
    """Every weight that a LoRA may change, with the gate that was folded into it; where it is stored is found later."""
    mapped = {
        f"{part}.{path.removeprefix('text_model.')}": MappedWeight(tuple(module.weight.shape))
        for part, root in (("unet", model.unet), ("text_encoder", model.text_encoder))
        for path, module in root.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)
    }
    for path, gated in model.unet.named_modules():
        if not isinstance(gated, GatedResidual):
            continue
        for inner, module in gated.named_modules():
            if gated.is_identity or module is gated.last_layer():
                weight = mapped.get(f"unet.{path}.{inner}")
                if weight is not None:
                    weight.gate = gated.openness
    return mapped


def _weights(module: nn.Module, mapped: Mapping[str, MappedWeight]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The weights of a stage as its graph holds them, by layer."""
    for path, layer in module.named_modules():
        name = path.replace("text_encoder.text_model.", "text_encoder.", 1)
        if name in mapped and isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d):
            yield name, layer.weight.detach().numpy()
