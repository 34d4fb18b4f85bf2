"""What is compared: every preset, and every single option that a preset might be made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...runtime.request.presets import PRESETS

EXACT = "exact"
FINE = "ddim, 200 steps"
"""Close to the solution of the equation that all samplers solve: what of a distance is the exact settings' own."""

# Each changes one thing of "exact", a solver its steps too. Not among them: lcm, which is for
# distilled checkpoints, and euler, which is ddim by algebra.
_SINGLE: dict[str, dict[str, Any]] = {
    FINE: {"num_inference_steps": 200},
    "ddim, 25 steps": {"num_inference_steps": 25},
    "dpmpp_2m, 25 steps": {"scheduler": "dpmpp_2m", "num_inference_steps": 25},
    "dpmpp_2m_karras, 25 steps": {"scheduler": "dpmpp_2m_karras", "num_inference_steps": 25},
    "unipc, 25 steps": {"scheduler": "unipc", "num_inference_steps": 25},
    "ddim, 12 steps": {"num_inference_steps": 12},
    "dpmpp_2m, 12 steps": {"scheduler": "dpmpp_2m", "num_inference_steps": 12},
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


def all_variants(guided: bool = True) -> list[Variant]:
    """Presets first, "exact" at their head, then the single options; without guidance those that change it are left
    out.
    """
    presets = [Variant(name, dict(options), True) for name, options in PRESETS.items()]
    presets.sort(key=lambda variant: variant.name != EXACT)
    single = [Variant(name, {**PRESETS[EXACT], **options}, False) for name, options in _SINGLE.items()]
    return presets + [variant for variant in single if guided or variant.options["guidance_interval"] == (0.0, 1.0)]
