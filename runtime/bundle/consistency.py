"""A bundle's parts against each other: the manifest's sizes, its graphs' own shapes, and the tokenizer.

A contradiction would otherwise surface as a cryptic error inside a library, or as a wrong video.
Graphs are read by :mod:`.onnx_walker`, in a tenth of a second for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import UserError
from ...kernels.ddim import SchedulerConfig
from ..request.option_table import MAX_SIDE
from .graph_source import GraphSource
from .manifest import Manifest, ModelSpec, StageSpec, TensorSpec
from .onnx_walker import GraphTensor
from .typed_json import MANIFEST_NAME

# What a generation gives each stage, and takes from it.
_NEEDED: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text_encoder": (("input_ids",), ("text_embeddings",)),
    "conditioning": (("text_embeddings",), ()),
    "vae_encoder": (("image",), ("mean", "logvar")),
    "vae_decoder": (("latents",), ("image",)),
    "unet": (("sample", "timestep", "first_frame_latents"), ("noise_pred",)),
}


def _refusal(fault: str) -> UserError:
    return UserError(f"{fault}: export the bundle again.")


def check_graph(source: GraphSource, stage: StageSpec) -> None:
    """The graph takes and gives what the manifest says, and refers to nothing that is not recorded.

    Raises:
        UserError: it does not.
    """
    metadata = source.metadata
    for kind, tensors, specs in (
        ("inputs", metadata.inputs, stage.inputs),
        ("outputs", metadata.outputs, stage.outputs),
    ):
        found = {tensor.name: tensor for tensor in tensors}
        if found.keys() != {spec.name for spec in specs} or not all(_same(found[spec.name], spec) for spec in specs):
            raise _refusal(f"{source.file_name} has other {kind} than {MANIFEST_NAME} says")


def _same(tensor: GraphTensor, spec: TensorSpec) -> bool:
    """Type, rank and fixed sizes; a graph may name a dynamic size in its own way."""
    if tensor.dtype != spec.dtype or tensor.shape is None:
        return tensor.dtype == spec.dtype
    return len(tensor.shape) == len(spec.shape) and all(
        size == said if isinstance(said, int) else not isinstance(size, int)
        for size, said in zip(tensor.shape, spec.shape, strict=True)
    )


def check_sizes(manifest: Manifest) -> None:
    """The manifest's sizes are those of its stages' tensors, and one stage gives what the next one takes. Tensors are
    known by their names; a stage without such a tensor is not judged here but by :func:`check_complete`.

    Raises:
        UserError: with the entry and the tensor that contradict each other.
    """
    model, factor = manifest.model, manifest.model.vae_scale_factor
    for name, size in (("height", model.height), ("width", model.width)):
        if size % factor:
            raise _refusal(f"{MANIFEST_NAME}: model.{name} {size} is no multiple of model.vae_scale_factor {factor}")
    _check_choice_of_sizes(model)
    sizes: dict[str, int | str] = {
        "one": 1,
        "three colours": 3,
        "model.rows": model.rows or "rows",
        "model.latent_channels": model.latent_channels,
        "model.frames less the first": model.frames - 1,
        "frames, or one": _decoded_at_once(manifest),
        "tokenizer.max_length": manifest.tokenizer.max_length,
    }
    for name, size in (("height", model.height), ("width", model.width)):
        is_fixed = model.dynamic_size_multiple is None
        sizes[f"model.{name}"] = size if is_fixed else name
        sizes[f"model.{name} over model.vae_scale_factor"] = size // factor if is_fixed else f"latent_{name}"
    one, three, rows, channels, moving, decoded, length, high, latent_high, wide, latent_wide = sizes
    latents = (one, channels, latent_high, latent_wide)
    expected: dict[tuple[str, str], tuple[str, ...]] = {
        ("text_encoder", "input_ids"): (one, length),
        ("vae_encoder", "image"): (one, three, high, wide),
        ("vae_encoder", "mean"): latents,
        ("vae_encoder", "logvar"): latents,
        ("vae_decoder", "latents"): (decoded, *latents[1:]),
        ("vae_decoder", "image"): (decoded, three, high, wide),
    }
    for unet in ("unet", "unet_shallow"):
        expected[unet, "sample"] = expected[unet, "noise_pred"] = (rows, channels, moving, latent_high, latent_wide)
        expected[unet, "first_frame_latents"] = (rows, channels, one, latent_high, latent_wide)
    for (stage, name), entries in expected.items():
        spec = manifest.stages.get(stage)
        tensors = () if spec is None else (*spec.inputs, *spec.outputs)
        shape = next((tensor.shape for tensor in tensors if tensor.name == name), None)
        if shape is None:
            continue
        message = f"{MANIFEST_NAME}: {name} of stage {stage}"
        if len(shape) != len(entries):
            raise _refusal(f"{message} has {len(shape)} sizes, not {len(entries)}")
        for found, entry in zip(shape, entries, strict=True):
            if found != sizes[entry]:
                raise _refusal(f"{message} is {list(shape)}, and {entry} is {sizes[entry]}")
    _check_handover(manifest.stages)
    _check_scheduler(manifest)


def _decoded_at_once(manifest: Manifest) -> int | str:
    """The decoder's first size: open, or one frame as in bundles of earlier versions."""
    decoder = manifest.stages.get("vae_decoder")
    sizes = () if decoder is None else [tensor.shape[0] for tensor in decoder.inputs if tensor.shape]
    return "frames" if "frames" in sizes else 1


def _check_choice_of_sizes(model: ModelSpec) -> None:
    multiple = model.dynamic_size_multiple
    if not model.sizes:
        return
    fits = multiple is not None and all(
        len(size) == 2 and all(0 < side <= MAX_SIDE and side % multiple == 0 for side in size) for size in model.sizes
    )
    if not fits or len(set(model.sizes)) < len(model.sizes) or model.sizes[0] != (model.height, model.width):
        raise _refusal(
            f"{MANIFEST_NAME}: entry model.sizes is {str([list(size) for size in model.sizes])[:200]}, and it takes "
            "different pairs of multiples of model.dynamic_size_multiple, model.height and model.width first"
        )


def _check_handover(stages: Mapping[str, StageSpec]) -> None:
    """The conditioning takes the text encoder's output, and gives the U-Net's keys and values, a row at a time."""
    conditioning = {spec.name for spec in (*stages["conditioning"].inputs, *stages["conditioning"].outputs)}
    for giver, taker in (("text_encoder", "conditioning"), ("conditioning", "unet"), ("conditioning", "unet_shallow")):
        given = {spec.name: spec for spec in stages[giver].outputs if spec.name in conditioning}
        for spec in stages[taker].inputs if taker in stages else ():
            source = given.get(spec.name)
            if source is not None and (source.dtype, source.shape[1:]) != (spec.dtype, spec.shape[1:]):
                raise _refusal(
                    f"{MANIFEST_NAME}: stage {giver} gives {spec.name} as {source.dtype} {list(source.shape)}, and "
                    f"stage {taker} takes {spec.dtype} {list(spec.shape)}"
                )


def _check_scheduler(manifest: Manifest) -> None:
    try:
        steps = SchedulerConfig.from_dict(manifest.scheduler).num_train_timesteps
    except ValueError as error:
        raise UserError(f"{MANIFEST_NAME}: the scheduler cannot be used: {error}") from None
    level = manifest.frame_init.noise_level
    if not 0 <= level < steps:
        raise _refusal(
            f"{MANIFEST_NAME}: entry frame_init.noise_level is {level}, and the scheduler has timesteps from 0 to "
            f"{steps - 1}"
        )


def check_complete(manifest: Manifest, graph: Callable[[StageSpec], GraphSource], tokenizer: Any) -> int | None:
    """Every stage has the tensors that a generation gives and takes, and the tokenizer's numbers are in the text
    encoder's vocabulary.

    Args:
        graph: of a stage.
        tokenizer: a ``tokenizers.Tokenizer``.

    Returns:
        Entries of the text encoder's vocabulary; None where its graph does not tell.

    Raises:
        UserError: with what is missing or does not fit.
    """
    for stage, (inputs, outputs) in _NEEDED.items():
        spec = manifest.stages[stage]
        for needed, tensors in ((inputs, spec.inputs), (outputs, spec.outputs)):
            missing = [name for name in needed if name not in {tensor.name for tensor in tensors}]
            if missing:
                raise _refusal(f"{MANIFEST_NAME}: stage {stage} has no tensor {missing[0]}")
    padding, file = manifest.tokenizer, manifest.tokenizer.file
    number = tokenizer.token_to_id(padding.pad_token)
    if number != padding.pad_token_id:
        raise _refusal(
            f"{MANIFEST_NAME}: entry tokenizer.pad_token_id is {padding.pad_token_id}, and {file} has {number} for "
            f"{padding.pad_token[:40]!r}"
        )
    # The table that the token numbers select from, where the graph has one.
    metadata = graph(manifest.stages["text_encoder"]).metadata
    tables = [
        metadata.initialisers[table]
        for rows, table in metadata.lookups.items()
        if rows not in metadata.initialisers and len(metadata.initialisers.get(table, ())) == 2
    ]
    if len(tables) != 1:
        return None
    entries, largest = tables[0][0], max(tokenizer.get_vocab().values(), default=-1)
    if largest >= entries:
        raise _refusal(
            f"{file} has token numbers up to {largest}, and the text encoder's vocabulary has {entries} entries"
        )
    return entries
