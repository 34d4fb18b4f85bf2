"""What a LoRA file changes, by the layers of the model; its keys are in the layouts of diffusers or kohya.

Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): ``W + scale * alpha / rank * up @ down``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...runtime.files.guarded_read import parse_json
from .files import LoraTensors

_PARTS = (
    (re.compile(r"(.+)\.(?:lora_A(?:\.default)?|lora_down|(?:lora|lora_linear_layer)\.down)\.weight"), "down"),
    (re.compile(r"(.+)\.(?:lora_B(?:\.default)?|lora_up|(?:lora|lora_linear_layer)\.up)\.weight"), "up"),
    (re.compile(r"(.+\.processor\.to_(?:q|k|v|out)_lora)\.down\.weight"), "down"),
    (re.compile(r"(.+\.processor\.to_(?:q|k|v|out)_lora)\.up\.weight"), "up"),
    (re.compile(r"(.+)\.alpha"), "alpha"),
)
_KOHYA = re.compile(r"lora_(unet|te1?)_(.+)")
_WRAPPERS = re.compile(r"^(base_model\.model\.|module\.)+")


def total_deltas(
    loras: Iterable[tuple[LoraTensors, float]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float64]]:
    """What files at their scales add to each weight together, float64: it is rounded once, in the merged weight.

    Raises:
        UserError: as :func:`deltas`.
    """
    total: dict[str, NDArray[np.float64]] = {}
    for lora, scale in loras:
        for layer, delta in deltas(lora, shapes).items():
            scaled = scale * delta
            total[layer] = total[layer] + scaled if layer in total else scaled
    return total


@dataclass
class _Layer:
    stem: str
    parts: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def deltas(lora: LoraTensors, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float64]]:
    """What a file adds to each weight at scale 1, float64.

    Args:
        lora: the file.
        shapes: layer, such as ``unet.conv_in`` or ``text_encoder.encoder.layers.0.mlp.fc1`` -> shape of its weight.

    Raises:
        UserError: a key fits no layer (named), half of a pair is missing, a shape differs, or a value is not finite.
    """
    kohya = {name.partition(".")[0] + "." + name.partition(".")[2].replace(".", "_"): name for name in shapes}
    layers: dict[str, _Layer] = {}
    unknown = []
    for key, tensor in lora.tensors.items():
        found = _locate(key, shapes, kohya)
        if found is None:
            unknown.append(key[:120])
            continue
        target, stem, part = found
        layer = layers.setdefault(target, _Layer(stem))
        if part in layer.parts:
            raise UserError(f"{lora.path} changes {target} twice (the second time as {key[:120]!r}): give one of them.")
        layer.parts[part] = tensor
    if unknown or not layers:
        names = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        raise UserError(
            f"{lora.path} is no LoRA for this model: "
            + (f"its keys {names} fit no layer. " if unknown else "it holds no layer. ")
            + "Give one of ConsistI2V's U-Net or text encoder, in the layout of diffusers or kohya."
        )
    settings = _peft_settings(lora)
    return {
        target: _delta(layer, shapes[target], settings, f"{lora.path}, layer {target}")
        for target, layer in layers.items()
    }


def _locate(key: str, shapes: Mapping[str, Any], kohya: Mapping[str, str]) -> tuple[str, str, str] | None:
    """A key's layer, its path in the file, and which part it is; None: it fits nothing."""
    for pattern, part in _PARTS:
        match = pattern.fullmatch(key)
        if match is None:
            continue
        stem = _WRAPPERS.sub("", match[1])
        flat = _KOHYA.fullmatch(stem)
        if flat is not None:
            model = "unet" if flat[1] == "unet" else "text_encoder"
            target = kohya.get(f"{model}.{flat[2].removeprefix('text_model_')}")
            return (target, stem, part) if target else None
        path = re.sub(r"\.processor\.(to_(?:q|k|v|out))_lora$", r".\1", stem)
        path = re.sub(r"\.to_out$", ".to_out.0", path).replace(".processor.", ".")
        if not path.startswith(("unet.", "text_encoder.")):
            path = ("text_encoder." if path.startswith("text_model.") else "unet.") + path
        path = path.replace("text_encoder.text_model.", "text_encoder.", 1)
        return (path, stem, part) if path in shapes else None
    return None


def _delta(layer: _Layer, shape: tuple[int, ...], settings: Mapping[str, Any], where: str) -> NDArray[np.float64]:
    if "up" not in layer.parts or "down" not in layer.parts:
        raise UserError(f"{where}: one half of the pair is missing: download the file again.")
    up, down = (layer.parts[name].astype(np.float64) for name in ("up", "down"))
    rank = down.shape[0] if down.ndim else 0
    fits = up.ndim >= 2 and down.ndim >= 2 and rank >= 1
    fits = fits and up.shape[:2] == (shape[0], rank) and up.size == shape[0] * rank
    if not fits or _trimmed(down.shape[1:]) != _trimmed(shape[1:]):
        raise UserError(
            f"{where}: {list(up.shape)} times {list(down.shape)} does not make the layer's {list(shape)}: "
            "this LoRA is of another model."
        )
    alpha = float(layer.parts["alpha"].reshape(-1)[0]) if layer.parts.get("alpha", np.empty(0)).size else None
    factor = alpha / rank if alpha is not None else _peft_factor(layer.stem, rank, settings)
    delta: NDArray[np.float64] = factor * (up.reshape(shape[0], rank) @ down.reshape(rank, -1))
    if not np.isfinite(delta).all():
        raise UserError(f"{where} holds numbers that are not finite: the file is damaged.")
    return delta.reshape(shape)


def _trimmed(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Without sizes of 1 at the end: a linear layer may have been trained as a 1x1 convolution."""
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes = sizes[:-1]
    return sizes


def _peft_settings(lora: LoraTensors) -> Mapping[str, Any]:
    """What diffusers notes beside the tensors of each model: rank, alpha, rsLoRA.

    Raises:
        UserError: it cannot be read, or asks for what is not merged.
    """
    text = lora.metadata.get("lora_adapter_metadata")
    if text is None:
        return {}
    try:
        settings = parse_json(text) if isinstance(text, str) else None
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"{lora.path}: the entry lora_adapter_metadata of its header is damaged: save it again.")
    for name, value in settings.items():
        if name.endswith((".alpha_pattern", ".use_dora")) and value:
            raise UserError(
                f"{lora.path} uses {name.rpartition('.')[2]}, which cannot be merged here: save it without."
            )
    return settings


def _peft_factor(stem: str, rank: int, settings: Mapping[str, Any]) -> float:
    """``alpha / rank`` as the header says it (rsLoRA: ``alpha / sqrt(rank)``); 1 where it says nothing."""
    model = "text_encoder" if stem.startswith("text_") else "unet"
    alpha = settings.get(f"{model}.lora_alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        return 1.0
    return float(alpha) / (math.sqrt(rank) if settings.get(f"{model}.use_rslora") else rank)
