"""What the demo model understands: phrases of camera moves, and the settings it recommends to those who run it."""

from __future__ import annotations

from ....runtime.bundle.manifest import RecommendedSettings
from .moves import MOVES

# The first phrase of each move is the one used for measuring.
MOVE_PHRASES: dict[str, tuple[str, ...]] = {
    "pan_left": ("pan left", "the camera pans left", "panning to the left", "camera moves left"),
    "pan_right": ("pan right", "the camera pans right", "panning to the right", "camera moves right"),
    "pan_up": ("pan up", "the camera pans up", "the camera tilts up", "camera moves up"),
    "pan_down": ("pan down", "the camera pans down", "the camera tilts down", "camera moves down"),
    "zoom_in": ("zoom in", "the camera zooms in", "zooming in", "camera moves closer"),
    "zoom_out": ("zoom out", "the camera zooms out", "zooming out", "camera moves away"),
    "rotate_clockwise": ("rotate clockwise", "the picture turns clockwise", "rotating clockwise"),
    "rotate_counterclockwise": (
        "rotate counterclockwise",
        "the picture turns counterclockwise",
        "rotating counterclockwise",
    ),
    "still": ("still", "a still picture", "the camera does not move", "static camera"),
}
assert set(MOVE_PHRASES) == set(MOVES)

DEMO_RECOMMENDED = RecommendedSettings(
    # Without a text the picture stands still: guidance away from that exaggerates edges and doubles the work of a step.
    guidance_scale_txt=1.0,
    # Fewer change nothing that is seen: what moves is decided by the weights, not by the noise.
    num_inference_steps=16,
    known_prompts=(
        *(phrases[0] for phrases in MOVE_PHRASES.values()),
        *(phrase for phrases in MOVE_PHRASES.values() for phrase in phrases[1:]),
    ),
    # The model moves by its prompt alone: FrameInit's moving crops change the first frame's crop, but start no motion.
    camera_motions=(),
)
