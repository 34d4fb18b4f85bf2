"""Reading checkpoints: a folder in diffusers layout, a hub id, and training checkpoints of the U-Net."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel

from ..errors import UserError, first_line
from ..runtime.files.guarded_read import MODEL_CARD, read_text
from .checkpoint import Checkpoint, check_weight_file, open_checkpoint, weight_files
from .lora.files import LoraRequest, LoraTensors, read_lora_file
from .lora.layouts import total_deltas
from .source_model import SourceModel
from .unet import UNetConfig, VideoUNet
from .unet.state_dict import is_dead

_LICENCE_UNKNOWN = "not stated by the checkpoint"


def load_model(
    model: str | os.PathLike[str], *, unet_checkpoint: str | os.PathLike[str] | None = None, revision: str | None = None
) -> SourceModel:
    """Load a checkpoint for export, in float32 on the CPU.

    Args:
        model: a folder with ``unet/ vae/ text_encoder/ tokenizer/``, or a hub id such as ``TIGER-Lab/ConsistI2V``
            (downloaded once and cached; an interrupted download resumes). A file ``recommended.json`` in it says with
            which settings the model is best used.
        unet_checkpoint: a file whose U-Net weights replace the folder's, such as a training checkpoint.
        revision: hub revision.

    Raises:
        UserError: the model cannot be found, or parts of it are missing, unreadable or do not fit together.
    """
    return load_checkpoint(open_checkpoint(model, unet_checkpoint=unet_checkpoint, revision=revision), unet_checkpoint)


def load_checkpoint(
    checkpoint: Checkpoint,
    unet_checkpoint: str | os.PathLike[str] | None = None,
    loras: Sequence[LoraRequest] = (),
) -> SourceModel:
    """Load a checkpoint whose configurations have been checked; see :func:`load_model`.

    Args:
        checkpoint: from :func:`open_checkpoint`.
        unet_checkpoint: a file whose U-Net weights replace the folder's.
        loras: merged into the weights before anything else is done to them.

    Raises:
        UserError: parts of it are unreadable or do not fit together.
    """
    folder = checkpoint.folder
    weights = read_weights(unet_checkpoint or folder / "unet")
    for part in ("vae", "text_encoder"):
        read_weights(folder / part)  # the two libraries silently accept complex and missing weights
    try:
        _quieten_libraries()
        vae, vae_report = AutoencoderKL.from_pretrained(
            folder / "vae", torch_dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        text_encoder, text_report = CLIPTextModel.from_pretrained(
            folder / "text_encoder", dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True, trust_remote_code=False)
    except Exception as error:  # on a broken file the two libraries raise anything at all
        raise UserError(
            f"{checkpoint.name}: its VAE, text encoder or tokenizer cannot be read ({first_line(error)})."
        ) from None
    for part, report in (("vae", vae_report), ("text_encoder", text_report)):
        missing = sorted(report["missing_keys"])
        if missing:
            raise UserError(f"{folder / part} lacks weights ({', '.join(missing[:3])}, ...): download it again.")
    if len(tokenizer) > checkpoint.text_encoder.vocabulary or tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens and pad token {tokenizer.pad_token_id}, the text encoder "
            f"embeds {checkpoint.text_encoder.vocabulary}: the parts are not of one checkpoint."
        )
    merge_loras(loras, weights, text_encoder)
    with_loras = "".join(f" with LoRA {lora.path.name} x {lora.scale:g}" for lora in loras)
    return SourceModel(
        unet=build_unet(checkpoint.unet, weights),
        vae=vae.eval().requires_grad_(False),
        text_encoder=text_encoder.eval().requires_grad_(False),
        tokenizer=tokenizer,
        source=checkpoint.name + with_loras,
        revision=checkpoint.revision,
        licence=_licence(folder),
        trained=True,
        recommended=checkpoint.recommended,
    )


def merge_loras(loras: Sequence[LoraRequest], unet: dict[str, Tensor], text_encoder: nn.Module) -> None:
    """Add LoRAs to the weights, in place: before gates are folded and convolutions split.

    Args:
        loras: safetensors files or torch checkpoints, with their scales.
        unet: its weights by their keys; changed ones are float32.
        text_encoder: the module.

    Raises:
        UserError: a file cannot be read, or holds keys that fit nothing.
    """
    layers = {f"unet.{key.removesuffix('.weight')}": key for key, value in unet.items() if value.ndim >= 2}
    layers = {layer: key for layer, key in layers.items() if key.endswith(".weight") and not is_dead(key)}
    text = {
        f"text_encoder.{path.removeprefix('text_model.')}": module
        for path, module in text_encoder.named_modules()
        if isinstance(module, nn.Linear)
    }
    shapes = {layer: tuple(unet[key].shape) for layer, key in layers.items()}
    shapes |= {layer: tuple(module.weight.shape) for layer, module in text.items()}
    for layer, delta in total_deltas(((_read_lora(lora.path), lora.scale) for lora in loras), shapes).items():
        added = torch.from_numpy(delta)
        if layer in layers:
            key = layers[layer]
            unet[key] = (unet[key].double() + added).float()
        else:
            with torch.no_grad():
                text[layer].weight.copy_(text[layer].weight.double() + added)


def _read_lora(path: Path) -> LoraTensors:
    if path.suffix == ".safetensors":
        return read_lora_file(path)
    tensors = {key: value.float().numpy() for key, value in read_weights(path).items()}
    return LoraTensors(path, "", tensors, {})


def build_unet(config: Mapping[str, Any] | UNetConfig, weights: Mapping[str, Tensor]) -> VideoUNet:
    """The U-Net around given weights, without a second copy of them, its gates folded."""
    with torch.device("meta"):
        unet = VideoUNet.from_config(config)
    unet.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    return unet.prepare_for_inference()


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """State dict of a file or of a diffusers model folder; safetensors where they exist, pickles as weights only.

    Training checkpoints (``{"state_dict": ...}``, keys that begin with ``module.``) are unwrapped.

    Raises:
        UserError: nothing readable there, or weights that are not real numbers.
    """
    path = Path(path)
    if not os.path.isdir(path):  # noqa: PTH112  (a name too long is no folder; Path.is_dir() raises)
        check_weight_file(path)
        files = [path]
    else:
        files = weight_files(path)
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                loaded = load_file(file)
            else:
                loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:
            raise UserError(
                f"{file} cannot be read as weights ({first_line(error)}): give a safetensors file, or a torch "
                "checkpoint that holds nothing but tensors."
            ) from None
        nested = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
        if not isinstance(nested, dict):
            raise UserError(f"{file} holds no state dict: give a safetensors file or a torch checkpoint.")
        weights |= {key.removeprefix("module."): value for key, value in nested.items() if isinstance(value, Tensor)}
    for key, value in weights.items():
        if value.is_complex():
            raise UserError(f"{path}: tensor {key[:60]!r} has dtype {value.dtype}; weights are real numbers.")
    if not weights:
        raise UserError(f"{path} holds no weights.")
    return weights


def _quieten_libraries() -> None:
    """Their progress bars and advice about formats would stand between our own lines."""
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _licence(folder: Path) -> str:
    """The licence line of the model card, as the hub's own metadata has it."""
    card = folder / "README.md"
    try:
        found = re.search(r"^license:\s*(\S+)", read_text(card, MODEL_CARD), re.MULTILINE)
    except UserError:
        # No card, or one that cannot be read, is no reason to refuse the weights.
        found = None
    return found.group(1) if found else _LICENCE_UNKNOWN
