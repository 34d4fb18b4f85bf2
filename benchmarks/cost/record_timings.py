"""Timings that ``consisti2v bench`` measured on a GPU, in the form that a fit reads."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from ...errors import UserError
from ...runtime.gpu.cards import find_card
from .model_costs import ModelCosts

_STAGES = {
    "text encoder": "text_encoder",
    "conditioning": "conditioning",
    "VAE encoder": "vae_encoder",
    "U-Net": "unet",
    "VAE decoder": "vae_decoder",
    "forward": "unet",
}
"""Rows of a record -> stages."""


def timings_of_record(data: Mapping[str, Any], costs: ModelCosts) -> dict[str, Any]:
    """A fit's timings from a record of ``bench BUNDLE`` or ``bench side-by-side``.

    Args:
        data: the record, as JSON has it.
        costs: of the bundle that was measured.

    Raises:
        UserError: measured on no GPU of the table, nothing of it on the GPU, or another size than `costs`.
    """
    bundle = data["bundle"]
    sizes = [(bundle[key], getattr(costs, key)) for key in ("frames", "height", "width")]
    if any(measured != counted for measured, counted in sizes):
        raise UserError(
            f"the timings are of {bundle['frames']} frames of {bundle['width']}x{bundle['height']}, the costs of "
            f"{costs.frames} of {costs.width}x{costs.height}: give the measured bundle with --bundle."
        )
    gpus = data["machine"]["gpus"]
    if not gpus:
        raise UserError("the timings were measured on a processor: a GPU's efficiencies need a GPU's timings.")
    subject = next(
        (
            entry
            for entry in data["subjects"]
            if entry["device"] == "cuda" and entry["unavailable"] is None and not entry["backend"].startswith("torch")
        ),
        None,
    )
    if subject is None:
        raise UserError("none of the record's sessions ran on the GPU: measure with --device cuda.")
    timings = [
        {"stage": _STAGES[row["name"]], "seconds": median(row.get("device_seconds") or row["seconds"]) / row["runs"]}
        for row in subject["rows"]
        if row["name"] in _STAGES
    ]
    name = table_name(gpus[0]["name"])
    # Only where the table knows the card at several limits is the limit a choice.
    card = find_card(name)
    several = card is not None and card.performance is not None and len(card.performance.clocks) > 1
    power = gpus[0]["power_limit_watts"] if several else None
    return {"gpu": name, "power": power, "precision": subject["precision"], "timings": timings}


def table_name(reported: str) -> str:
    """The table's name of a GPU that NVML reports, such as ``NVIDIA GeForce RTX 4060 Laptop GPU``.

    Raises:
        UserError: it is not in the table, or only by its compute capability.
    """
    card = find_card(reported)
    if card is None or card.performance is None:
        raise UserError(
            f"{reported} is not in the table with its clock and bandwidth (docs/gpus.md): give the timings in a file "
            "that describes the GPU."
        )
    return card.slug
