"""OpenVINO as a backend: can it run here, does the bundle fit, load a stage."""

from __future__ import annotations

from collections.abc import Mapping

from ...errors import UserError
from ..bundle.bundle import Bundle
from ..bundle.stage_graphs import Availability, has_graphs, stage_graph
from .session import HINTS, OpenVinoSession, check_precision, native_precisions, runtime
from .shared_prefix import TEXTLESS_INPUTS

PRECISIONS = ("fp32", "bf16", "fp16", "int8")


def probe() -> Availability:
    """Whether OpenVINO is installed, and what this processor computes in."""
    try:
        openvino = runtime()
    except UserError as error:
        return Availability(False, str(error))
    release = openvino.__version__.split("-")[0]
    return Availability(
        True, f"openvino {release} on the processor, which computes in {', '.join(native_precisions())}"
    )


def fits(bundle: Bundle, precision: str) -> Availability:
    """fp32, bf16 and fp16 are computed from the float32 graphs; int8 has its own."""
    if precision not in HINTS:
        return has_graphs(bundle, precision)
    try:
        check_precision(precision)
    except UserError as error:
        return Availability(False, str(error))
    return Availability(True, f"float32 graphs, computed in {precision}")


def load(bundle: Bundle, stage: str, dims: Mapping[str, int], threads: int | None, precision: str) -> OpenVinoSession:
    """One stage. bf16 and fp16 are for the U-Net alone: it takes the time, and the other stages stay exact."""
    spec = stage_graph(bundle, stage, "fp32" if precision in HINTS else precision)
    reduced = precision in HINTS and stage == "unet"
    return OpenVinoSession(
        bundle.graph(spec),
        spec,
        dims,
        threads,
        precision=precision if reduced else "fp32",
        textless=TEXTLESS_INPUTS if stage.startswith("unet") else (),
    )
