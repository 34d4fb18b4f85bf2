"""Model -> bundle: every stage exported, compared with torch, hashed, and put in place at once."""

from __future__ import annotations

import dataclasses
import gc
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from ..kernels.guidance import BRANCHES
from ..runtime.bundle import hash_files
from ..runtime.errors import UserError
from ..runtime.manifest import (
    MANIFEST_NAME,
    FrameInitDefaults,
    Manifest,
    ModelSpec,
    Provenance,
    StageSpec,
    TokenizerSpec,
)
from ..runtime.recommended import check_recommended
from ..runtime.settings import MAX_SIDE
from .onnx_graph import compare_with_torch, stage_spec, torch_reference, write_graph
from .partial_folders import remove_abandoned_exports
from .source_model import SourceModel
from .stages import dynamic_sizes, stages
from .unet.simplified_text import TEXT_ATTENTIONS, simplify_and_measure
from .unet_stages import TEXT_LENGTH

ANY_GUIDANCE = "any"
_TOOLS = ("consisti2v-rt", "torch", "onnx", "onnxscript", "onnxruntime", "diffusers", "transformers")
_TOKENIZER_FILE = "tokenizer/tokenizer.json"


@dataclass(frozen=True)
class StageReport:
    """What became of one stage."""

    name: str
    seconds: float
    bytes: int
    relative_l2: float
    """Against torch, on random inputs, through ONNX Runtime."""


def write_bundle(
    model: SourceModel,
    output: str | os.PathLike[str],
    *,
    height: int = 256,
    width: int = 256,
    guidance: str = ANY_GUIDANCE,
    dynamic: bool = False,
    precision: str = "fp32",
    cache_branch: int | None = None,
    text_attention: str = "full",
    on_stage_start: Callable[[str], None] = lambda name: None,
    on_stage_end: Callable[[StageReport], None] = lambda report: None,
    on_loss: Callable[[str, float], None] = lambda option, relative_l2: None,
) -> Path:
    """Export a model to a bundle.

    The bundle is made in a temporary folder beside `output` and renamed when complete: a stopped export leaves the old
    bundle or none. The model's modules are released as they are exported (a full-size one would not fit in memory
    twice): do not use `model` afterwards.

    Args:
        model: from :func:`load_model` or :func:`random_model`.
        output: the bundle's folder; an existing bundle is replaced, any other folder is refused.
        height, width: pixels, multiples of the VAE's factor (8); with `dynamic`, of 8 times 2 per U-Net level.
        guidance: any leaves the U-Net's batch open; text, both or none fix it at 2, 3 or 1 rows.
        dynamic: leave the batch and the size open (slower in engines).
        precision: fp32.
        cache_branch: also a shallow U-Net for feature caching, cut at this skip (0: the outermost).
        text_attention: full (published) or mean, which simplifies it; see :mod:`.unet.simplified_text`.
        on_stage_start, on_stage_end: progress.
        on_loss: told the measured loss of an option that is not exact.

    Raises:
        UserError: sizes or recommended settings that do not fit, an `output` that is not a bundle, or a stage that
            differs from torch.
    """
    output = Path(output).resolve()  # the folder itself, by its name: not ".", not a link to it
    latent_multiple = 2 ** (model.unet.config.levels - 1)
    check_request(output, guidance, precision, text_attention)
    multiple = check_size(model, height, width, dynamic)
    check_cache_branch(model, cache_branch)
    if text_attention == "mean":
        sides = height // model.vae_scale_factor, width // model.vae_scale_factor
        on_loss("text attention mean", simplify_and_measure(model.unet, *sides))
    rows = None if dynamic else BRANCHES.get(guidance)
    model_spec = ModelSpec(
        frames=model.unet.config.n_frames,
        height=height,
        width=width,
        latent_channels=model.unet.config.in_channels,
        vae_scale_factor=model.vae_scale_factor,
        vae_scaling_factor=float(model.vae.config.scaling_factor),
        rows=rows,
        guidance="text" if guidance == ANY_GUIDANCE else guidance,
        dynamic_size_multiple=multiple if dynamic else None,
        uses_frame_stride=model.unet.config.use_frame_stride_condition,
        trained=model.trained,
        unet_config=model.unet.config.to_dict(),
        cache_branch=cache_branch,
        text_attention=text_attention,
    )
    provenance = Provenance(model.source, model.revision, model.licence, {tool: version(tool) for tool in _TOOLS})
    scheduler, recommended = dataclasses.asdict(model.scheduler), model.recommended
    check_recommended(recommended, scheduler, "the model")
    with _atomic_folder(output) as folder:
        tokenizer = _write_tokenizer(model, folder)
        specs: dict[str, StageSpec] = {}
        sizes = dynamic_sizes(latent_multiple, model.vae_scale_factor)
        exports = stages(model, height, width, rows, dynamic, cache_branch=cache_branch)
        # From here on only the stages hold the modules, and each is let go after its export.
        del model
        for stage in exports:
            on_stage_start(stage.name)
            started = time.perf_counter()
            file = f"{stage.name}/{stage.name}.onnx"
            path = folder / file
            reference = torch_reference(stage)
            write_graph(stage, path, sizes)
            specs[stage.name] = stage_spec(stage, reference, file, precision)
            name = stage.name
            del stage
            gc.collect()
            relative_l2 = compare_with_torch(path, specs[name], reference)
            size = sum(f.stat().st_size for f in path.parent.iterdir())
            on_stage_end(StageReport(name, time.perf_counter() - started, size, relative_l2))
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


def check_request(output: Path, guidance: str, precision: str, text_attention: str = "full") -> None:
    """What can be refused before a model is loaded.

    Raises:
        UserError: unknown guidance, precision or text attention, or an `output` that cannot become a bundle.
    """
    if guidance not in (ANY_GUIDANCE, *BRANCHES):
        raise UserError(f"guidance {guidance!r} is unknown: choose {', '.join((ANY_GUIDANCE, *BRANCHES))}.")
    if text_attention not in TEXT_ATTENTIONS:
        raise UserError(f"text attention {text_attention!r} is unknown: choose {', '.join(TEXT_ATTENTIONS)}.")
    if precision != "fp32":
        raise UserError(f"precision {precision!r} is not an export precision: the exact export is fp32.")
    output = output.resolve()
    try:
        if output.exists() and not (output / MANIFEST_NAME).is_file():
            raise UserError(f"{output} exists and is not a bundle: give another folder.")
    except OSError as error:
        raise UserError(f"{output} cannot be written ({error.strerror}): give another folder.") from None
    parent = output.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{parent} is not a folder that can be written to: make it first, or give another place.")


def check_cache_branch(model: SourceModel, cache_branch: int | None) -> None:
    """Refuse a branch that the U-Net does not have.

    Raises:
        UserError: with the branches there are.
    """
    last = model.unet.skip_count - 2
    if cache_branch is not None and not 0 <= cache_branch <= last:
        raise UserError(f"cache branch {cache_branch} is not possible with this model: give 0 (cheapest) to {last}.")


def check_size(model: SourceModel, height: int, width: int, dynamic: bool) -> int:
    """The number of pixels that both sides must be multiples of.

    Raises:
        UserError: a side that is not, or is too large.
    """
    multiple = model.vae_scale_factor * (2 ** (model.unet.config.levels - 1) if dynamic else 1)
    for name, size in (("height", height), ("width", width)):
        if not multiple <= size <= MAX_SIDE or size % multiple:
            kind = "a dynamic export of this model" if dynamic else "this model"
            raise UserError(
                f"{name} {size} does not fit: {kind} takes multiples of {multiple} pixels, up to {MAX_SIDE}."
            )
    return multiple


def _write_tokenizer(model: SourceModel, folder: Path) -> TokenizerSpec:
    tokenizer = model.tokenizer
    path = folder / _TOKENIZER_FILE
    path.parent.mkdir()
    path.write_text(tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    return TokenizerSpec(_TOKENIZER_FILE, TEXT_LENGTH, int(tokenizer.pad_token_id), str(tokenizer.pad_token))


@contextmanager
def _atomic_folder(output: Path) -> Iterator[Path]:
    """A temporary sibling of `output` that takes its place on success and vanishes on any failure."""
    temporary = output.with_name(f".{output.name}.partial-{os.getpid()}")
    replaced = output.with_name(f".{output.name}.replaced-{os.getpid()}")
    remove_abandoned_exports(output)
    try:
        temporary.mkdir()
        yield temporary
        if output.exists():
            output.rename(replaced)
        try:
            temporary.rename(output)
        except OSError:
            if replaced.exists():
                replaced.rename(output)
            raise
    except OSError as error:
        raise UserError(f"the bundle {output} cannot be written ({error}): check space and permissions.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
