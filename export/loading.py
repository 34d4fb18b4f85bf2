"""Reading checkpoints: a folder in diffusers layout, a hub id, and training checkpoints of the U-Net."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPTextModel

from ..kernels.ddim import SchedulerConfig
from ..runtime.errors import UserError
from ..runtime.manifest import RecommendedSettings
from ..runtime.recommended import recommended_settings
from .source_model import SourceModel
from .unet import VideoUNet

RECOMMENDED_FILE = "recommended.json"
"""Optional, in the checkpoint's folder: fields of :class:`RecommendedSettings`."""
_PARTS = ("unet", "vae", "text_encoder", "tokenizer")
# Half precision and training averages that diffusers keeps beside the weights proper.
_VARIANT = re.compile(r"\.(fp16|ema|non_ema)\.")
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
    folder = Path(model)
    if os.path.isdir(folder):  # noqa: PTH112  (a name too long for a path is no folder; Path.is_dir() raises)
        name, version = folder.resolve().name, "local folder"
    else:
        folder, version = _download(str(model), revision)
        name = str(model)
    for part in _PARTS:
        if not (folder / part).is_dir():
            raise UserError(f"{model} lacks the folder {part}/: a checkpoint holds {', '.join(_PARTS)}.")
    config = _read_json(folder / "unet" / "config.json")
    recommended = _recommended(folder)
    weights = read_weights(unet_checkpoint) if unet_checkpoint else read_weights(folder / "unet")
    try:
        _quieten_libraries()
        vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    except Exception as error:  # on a broken file the two libraries raise anything at all
        raise UserError(f"{model}: its VAE, text encoder or tokenizer cannot be read ({_first_line(error)}).") from None
    return SourceModel(
        unet=build_unet(config, weights),
        vae=vae.eval().requires_grad_(False),
        text_encoder=text_encoder.eval().requires_grad_(False),
        tokenizer=tokenizer,
        source=name,
        revision=version,
        licence=_licence(folder),
        trained=True,
        recommended=recommended,
    )


def build_unet(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> VideoUNet:
    """The U-Net around given weights, without a second copy of them, its gates folded."""
    with torch.device("meta"):
        unet = VideoUNet.from_config(config)
    unet.load_state_dict({key: value.float() for key, value in weights.items()}, assign=True)
    return unet.prepare_for_inference()


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """State dict of a file or of a diffusers model folder; safetensors where they exist, pickles as weights only.

    Training checkpoints (``{"state_dict": ...}``, keys that begin with ``module.``) are unwrapped.

    Raises:
        UserError: nothing readable there.
    """
    path = Path(path)
    files = _weight_files(path) if path.is_dir() else [path]
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                loaded = load_file(file)
            else:
                loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except FileNotFoundError:
            raise UserError(f"{file} does not exist: give a safetensors file or a torch checkpoint.") from None
        except Exception as error:
            raise UserError(
                f"{file} cannot be read as weights ({_first_line(error)}): give a safetensors file, or a torch "
                "checkpoint that holds nothing but tensors."
            ) from None
        nested = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
        if not isinstance(nested, dict):
            raise UserError(f"{file} holds no state dict: give a safetensors file or a torch checkpoint.")
        weights |= {key.removeprefix("module."): value for key, value in nested.items() if isinstance(value, Tensor)}
    if not weights:
        raise UserError(f"{path} holds no weights.")
    return weights


def _weight_files(folder: Path) -> list[Path]:
    for suffix in ("safetensors", "bin"):
        for index in sorted(folder.glob(f"*.{suffix}.index.json")):
            weight_map = _read_json(index).get("weight_map")
            names = list(weight_map.values()) if isinstance(weight_map, dict) else []
            if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
                raise UserError(f"{index} does not name the weight files beside it: download the folder again.")
            return [folder / name for name in sorted(set(names))]
        whole = [file for file in sorted(folder.glob(f"*.{suffix}")) if not _VARIANT.search(file.name)]
        if whole:
            return whole[:1]
    raise UserError(f"{folder} holds no weights: a diffusion_pytorch_model.safetensors (or .bin) is expected there.")


def _quieten_libraries() -> None:
    """Their progress bars and advice about formats would stand between our own lines."""
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _download(name: str, revision: str | None) -> tuple[Path, str]:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"model {name} is neither a folder nor a hub id such as TIGER-Lab/ConsistI2V.")
    from huggingface_hub import snapshot_download

    patterns = [f"{part}/*" for part in _PARTS] + ["README.md", RECOMMENDED_FILE]
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise UserError(
            f"model {name} is no folder here and cannot be fetched from the hub ({_first_line(error)}): check the "
            "name and the network, or give a folder."
        ) from None
    # The cache keeps each commit in a folder of its name.
    return folder, folder.name


def _recommended(folder: Path) -> RecommendedSettings:
    path = folder / RECOMMENDED_FILE
    if not path.exists():
        return RecommendedSettings()
    return recommended_settings(_read_json(path), asdict(SchedulerConfig()), str(path))


def _licence(folder: Path) -> str:
    """The licence line of the model card, as the hub's own metadata has it."""
    card = folder / "README.md"
    if card.is_file():
        found = re.search(r"^license:\s*(\S+)", card.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if found:
            return found.group(1)
    return _LICENCE_UNKNOWN


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"{path} is missing.") from None
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object.")
    return value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
