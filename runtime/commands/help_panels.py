"""Help in groups: which option stands under which heading, on a terminal and in plain text."""

from __future__ import annotations

from typing import Any

from .option_aliases import AliasCommand

# In this order. An option that is not listed stands under "Other options".
_PANELS: dict[str, tuple[str, ...]] = {
    "Basic": ("bundle", "image", "prompt", "negative_prompt", "preset", "steps", "scheduler", "eta", "seed", "config"),
    "Video": ("height", "width", "frames", "clips", "videos_per_prompt", "fit"),
    "Motion": ("frame_stride", "camera_motion", "noise", "noise_alpha"),
    "Guidance": (
        "guidance_scale",
        "image_guidance_scale",
        "guidance_rescale",
        "guidance_interval",
        "guidance_batch",
    ),
    "FrameInit": (
        "frameinit",
        "frameinit_noise_level",
        "frameinit_filter",
        "frameinit_d_s",
        "frameinit_d_t",
        "frameinit_order",
    ),
    "Output": ("output", "fps", "scale"),
    "Speed and memory": ("device", "precision", "threads", "cache_interval", "time_limit"),
    "GPU": ("low_vram", "device_noise", "cuda_graph"),
    "Other options": ("verify", "expect_digest", "help"),
}
_PANEL_OF = {name: panel for panel, names in _PANELS.items() for name in names}
_ORDER = {panel: place for place, panel in enumerate(_PANELS)}


class GroupedCommand(AliasCommand):
    """A command whose help lists its options by subject."""

    def get_params(self, ctx: Any) -> list[Any]:
        """As always, ordered by panel; typer reads each one's panel from it."""
        params: list[Any] = list(super().get_params(ctx))
        for param in params:
            param.rich_help_panel = _PANEL_OF.get(param.name, "Other options")
        return sorted(params, key=lambda param: _ORDER[param.rich_help_panel])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """The plain text, which typer does not group."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                rows.setdefault(param.rich_help_panel, []).append(record)
        for panel, records in rows.items():
            with formatter.section(panel):
                formatter.write_dl(records)
