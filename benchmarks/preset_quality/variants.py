"""What is compared: every preset, and every single option that presets are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...runtime.presets import PRESETS

EXACT = "exact"

# Each changes one thing of "exact". lcm is not among them: it is for distilled checkpoints.
_SINGLE: dict[str, dict[str, Any]] = {
    "ddim, 25 steps": {"num_inference_steps": 25},
    "euler, 25 steps": {"scheduler": "euler", "num_inference_steps": 25},
    "dpmpp_2m, 25 steps": {"scheduler": "dpmpp_2m", "num_inference_steps": 25},
    "dpmpp_2m_karras, 25 steps": {"scheduler": "dpmpp_2m_karras", "num_inference_steps": 25},
    "unipc, 25 steps": {"scheduler": "unipc", "num_inference_steps": 25},
    "ddim, 12 steps": {"num_inference_steps": 12},
    "dpmpp_2m, 12 steps": {"scheduler": "dpmpp_2m", "num_inference_steps": 12},
    "unipc, 12 steps": {"scheduler": "unipc", "num_inference_steps": 12},
    "guidance interval 0:0.8": {"guidance_interval": (0.0, 0.8)},
    "guidance interval 0.2:0.8": {"guidance_interval": (0.2, 0.8)},
}


@dataclass(frozen=True)
class Variant:
    """A way to generate, by name."""

    name: str
    options: dict[str, Any]
    """Fields of the settings, every one that presets set among them."""
    is_preset: bool


def all_variants() -> list[Variant]:
    """Presets first, "exact" at their head, then the single options."""
    presets = [Variant(name, dict(options), True) for name, options in PRESETS.items()]
    presets.sort(key=lambda variant: variant.name != EXACT)
    single = [Variant(name, {**PRESETS[EXACT], **options}, False) for name, options in _SINGLE.items()]
    return presets + single
