"""Training state on disk: written whole or not at all, so that a killed training resumes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ....errors import UserError


class Ema:
    """Exponential moving average of parameters: what is kept as the trained weights."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._trained = {name for name, value in module.named_parameters() if value.requires_grad}
        self.weights = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Follow the module; faster in the first steps, so that the random start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            if name in self._trained:
                self.weights[name].lerp_(value, 1 - decay)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and texts to a temporary sibling and rename it."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        torch.save(state, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """What :func:`save_checkpoint` wrote; None where there is none.

    Raises:
        UserError: the file is not a checkpoint.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise UserError(f"{path} is not a checkpoint ({type(error).__name__}): delete it to train anew.") from None
    return state


def random_state(rng: np.random.Generator, generator: torch.Generator) -> dict[str, Any]:
    """State of both random generators, as tensors and plain numbers."""
    inner = rng.bit_generator.state
    return {
        "numpy": {**inner, "state": {key: str(value) for key, value in inner["state"].items()}},
        "torch": generator.get_state(),
    }


def restore_random_state(rng: np.random.Generator, generator: torch.Generator, state: dict[str, Any]) -> None:
    """Set both generators as :func:`random_state` found them."""
    inner = dict(state["numpy"])
    inner["state"] = {key: int(value) for key, value in inner["state"].items()}
    rng.bit_generator.state = inner
    generator.set_state(state["torch"].cpu())


def move_to(state: dict[str, Tensor], device: torch.device | str) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in state.items()}
