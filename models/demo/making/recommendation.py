"""What the demo model recommends to those who run it: ``recommended.json`` beside its weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from ....export.checkpoint import RECOMMENDED_FILE
from ....runtime.bundle.manifest import RecommendedSettings
from .captions import MOVE_PHRASES

_PLAIN = tuple(phrases[0] for phrases in MOVE_PHRASES.values())
_OTHERS = tuple(phrase for phrases in MOVE_PHRASES.values() for phrase in phrases[1:])

DEMO_GUIDANCE = 1.0
"""Without a text the model shows a still picture, and guidance away from that exaggerates edges and doubles the work of
every step; see the model card."""

DEMO_RECOMMENDED = RecommendedSettings(
    guidance_scale_txt=DEMO_GUIDANCE,
    known_prompts=_PLAIN + _OTHERS,
    # The model moves by its prompt alone: FrameInit's moving crops change the first frame's crop, but start no motion.
    camera_motions=(),
)


def write_recommendation(folder: Path) -> None:
    """Write the settings that are not the published ones into a checkpoint's folder."""
    values = {name: value for name, value in dataclasses.asdict(DEMO_RECOMMENDED).items() if value is not None}
    (folder / RECOMMENDED_FILE).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
