"""A bundle's graphs in other precisions, with what each lost when it was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table

from ..bundle.bundle import Bundle
from ..files.guarded_read import parse_json

_EXPERIMENTAL = ("int8", "fp8")
"""Until engines of such graphs are timed on a card."""


def variant_table(bundle: Bundle, size: Callable[[int], str], style: dict[str, Any]) -> Table:
    """Precision, stage, bytes, the largest relative L2 to float32, what the activations were calibrated on.

    Args:
        bundle: one with variants.
        size: writes bytes.
        style: of :func:`~.table_style.table_style`.
    """
    columns = ("precision", "stage", "size", "relative L2 to float32", "activations in 8 bits")
    table = Table(*columns, title="other precisions", **style)
    for precision, stages in bundle.manifest.variants.items():
        found = _losses(bundle, precision)
        title = f"{precision}, experimental" if precision in _EXPERIMENTAL else precision
        for stage, spec in stages.items():
            folder = spec.file.rsplit("/", 1)[0] + "/"
            bytes_held = sum(r.bytes for path, r in bundle.manifest.files.items() if path.startswith(folder))
            entry = found.get(stage, {})
            calibrated = ""
            if spec.calibration is not None:
                on = spec.calibration
                count = entry.get("graph", {}).get("quantised_activations", "some")
                calibrated = f"{count}, calibrated on {on.name} ({on.samples} samples, {on.steps} steps each)"
            table.add_row(title, stage, size(bytes_held), _worst(entry), calibrated)
    return table


def _worst(entry: dict[str, Any]) -> str:
    losses = entry.get("losses")
    if not losses:
        return "not recorded"
    rows = sorted({loss["rows"] for loss in losses if loss["rows"] is not None})
    batches = f", batch {', '.join(map(str, rows))}" if rows else ""
    seeds = len({loss["seed"] for loss in losses})
    sums = entry.get("graph", {}).get("float32_sums", 0)
    wide = f", {sums} residual sums in float32" if sums else ""
    return f"{max(loss['relative_l2'] for loss in losses):.1e} ({seeds} seed{'s' * (seeds > 1)}{batches}){wide}"


def _losses(bundle: Bundle, precision: str) -> dict[str, Any]:
    name = f"variants/{precision}/losses.json"
    if name not in bundle.manifest.files:
        return {}
    # Damaged or gone, it is written anew with the graphs.
    try:
        stages: dict[str, Any] = parse_json(bundle.read(name, hashed=True).tobytes())["stages"]
    except (ValueError, KeyError, TypeError):
        return {}
    return stages
