"""The trained parts as a folder in diffusers layout, in half precision: what ``consisti2v export`` reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import nn

from ....errors import UserError
from ....export.loading import read_weights
from ....export.vocabulary import clip_tokenizer
from .recommendation import write_recommendation

if TYPE_CHECKING:
    from .unet_training import TrainedPair


def write_weights(output: Path, pair: TrainedPair, vae: AutoencoderKL) -> int:
    """Write ``unet/ vae/ text_encoder/ tokenizer/`` under `output`, float16 safetensors, and ``recommended.json``,
    replacing those there.

    Args:
        pair: gates unfolded (as trained), so that training can go on from what is written.
        vae: its scaling factor set.

    Returns:
        Bytes of all files.
    """
    output.mkdir(parents=True, exist_ok=True)
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        shutil.rmtree(output / part, ignore_errors=True)
    (output / "unet").mkdir()
    config = json.dumps({"_class_name": "VideoUNet", **pair.unet.config.to_dict()}, indent=2)
    (output / "unet" / "config.json").write_text(config + "\n", encoding="utf-8")
    save_file(_half(pair.unet), output / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    vae.half().save_pretrained(output / "vae")
    pair.text_encoder.half().save_pretrained(output / "text_encoder")
    for module in (vae, pair.text_encoder):
        module.float()
    tokenizer = clip_tokenizer()
    (output / "tokenizer").mkdir()
    tokenizer.save_pretrained(output / "tokenizer")
    table = output / "tokenizer" / "tokenizer.json"
    compact = json.dumps(json.loads(table.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":"))
    table.write_text(compact, encoding="utf-8")
    write_recommendation(output)
    for file in output.rglob("*.safetensors"):
        file.chmod(0o644)
    return sum(file.stat().st_size for file in output.rglob("*") if file.is_file())


def start_from(folder: Path, module: nn.Module) -> None:
    """Load the weights of one written part (``unet/``, ``vae/``, ``text_encoder/``) to train on from, in place.

    Raises:
        UserError: nothing readable there, or a part of other sizes.
    """
    weights = {name: value.float() for name, value in read_weights(folder).items()}
    try:
        module.load_state_dict(weights)
    except RuntimeError:
        raise UserError(f"{folder} has other sizes than this preset: choose the preset it was trained with.") from None


def _half(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.half().contiguous() for name, value in module.state_dict().items()}
