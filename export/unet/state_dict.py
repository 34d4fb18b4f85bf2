"""Checks of a U-Net state dict: every difference is named before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ...errors import UserError


def is_dead(key: str) -> bool:
    """True for checkpoint keys that the published forward never reads."""
    return ("conv3ds." in key and ".time_emb_proj." in key) or ".rotary_bias." in key or key.endswith(".pos_enc.dummy")


def check_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state dict with absent dead keys as zeros.

    Raises:
        UserError: a key is unknown or missing, or a shape differs; the sentence names them.
    """
    own = model.state_dict()
    unknown = [key for key in state_dict if key not in own and not is_dead(key)]
    missing = [key for key in own if key not in state_dict and not is_dead(key)]
    problems = []
    if unknown:
        problems.append(f"unknown keys {_some(unknown)}")
    if missing:
        problems.append(f"missing keys {_some(missing)}")

    def fits(key: str) -> bool:
        return key in state_dict and tuple(state_dict[key].shape) == tuple(own[key].shape)

    differing = [
        f"{key} {list(state_dict[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state_dict and not fits(key) and not is_dead(key)
    ]
    if differing:
        problems.append(f"other shapes {_some(differing)}")
    if problems:
        raise UserError(
            f"The U-Net weights do not fit the configuration: {'; '.join(problems)}. "
            "Give the checkpoint's own config.json."
        )
    return {key: state_dict[key] if fits(key) else torch.zeros_like(own[key], device="cpu") for key in own}


def _some(names: list[str], limit: int = 5) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
