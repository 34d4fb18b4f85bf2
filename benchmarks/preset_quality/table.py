"""The comparison of presets as tables."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .measurement import Measurement
from .outcome import share_of_seeds, verdicts
from .variants import EXACT, FINE


def comparison(measurement: Measurement, videos: int) -> Group:
    """Cost and distance of every variant, its quality measures, what is unavailable, and the verdicts."""
    parts: list[RenderableType] = [_costs(measurement, videos), _qualities(measurement)]
    if measurement.unavailable:
        missing = Table("unavailable", "why", title_justify="left")
        for name, reason in measurement.unavailable.items():
            missing.add_row(name, Text(reason))
        parts.append(missing)
    parts += [Text(sentence) for sentence in verdicts(measurement.outcomes, measurement.other_seed)]
    return Group(*parts)


def _costs(measurement: Measurement, videos: int) -> Table:
    table = Table(title=f"{videos} video(s) in one call, same noise for all; presets first", title_justify="left")
    table.add_column("settings", no_wrap=True)
    fine = any(outcome.fine_relative_l2 is not None for outcome in measurement.outcomes)
    names = ["seconds", "rows", "saved", "speed-up", "rel. L2", "of a seed's", "PSNR"]
    for name in [*names, "to fine"] if fine else names:
        table.add_column(name, justify="right", min_width=6)
    exact = next(outcome for outcome in measurement.outcomes if outcome.name == EXACT)
    for outcome in measurement.outcomes:
        speed_up = outcome.speed_up_unet or exact.unet_seconds / outcome.unet_seconds
        table.add_row(
            Text(outcome.name, style="bold" if outcome.is_preset else ""),
            f"{outcome.seconds:.2f}",
            str(outcome.row_forwards),
            f"{exact.row_forwards / outcome.row_forwards:.2f}x",
            f"{speed_up:.2f}x",
            f"{outcome.distance.latent_relative_l2:.4f}",
            f"{share_of_seeds(outcome, measurement.other_seed):.0%}",
            f"{outcome.distance.psnr:.1f}",
            *([] if outcome.fine_relative_l2 is None else [f"{outcome.fine_relative_l2:.4f}"]),
        )
    other = measurement.other_seed
    table.add_row(
        "another seed", "", "", "", "", f"{other.latent_relative_l2:.4f}", "100%", f"{other.psnr:.1f}", style="dim"
    )
    timed = measurement.published_unet_seconds
    caption = (
        f"U-Net speed-up: over the published formulation in torch eager, float32, {timed:.2f} s of U-Net"
        if timed is not None
        else "U-Net speed-up: over exact here; the published formulation was not timed"
    )
    caption += "\nseconds, speed-up: of one run each, so without an interval; rows saved are exact"
    caption += "\nrows: forwards of one U-Net row; rel. L2 (latents), PSNR (dB): from exact"
    if fine:
        caption += f"; to fine: rel. L2 to {FINE}"
    table.caption = caption
    table.caption_justify = "left"
    return table


def _qualities(measurement: Measurement) -> Table:
    names = list(measurement.outcomes[0].measures)
    table = Table("settings", *names, title="quality measures, mean over videos", title_justify="left")
    for outcome in measurement.outcomes:
        table.add_row(outcome.name, *(f"{outcome.measures[name]:.4f}" for name in names))
    return table
