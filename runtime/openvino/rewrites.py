"""What is rewritten in a loaded graph before OpenVINO compiles it. All of it is exact algebra."""

from __future__ import annotations

from typing import Any

from .interleaving import use_sums_for_interleaving
from .phase_convolutions import use_shared_phases
from .spatial_winograd import use_spatial_winograd
from .split_products import split_products
from .temporal_winograd import use_temporal_winograd


def rewrite(model: Any, *, winograd: bool) -> dict[str, int]:
    """Rewrite an ``openvino.Model`` of fixed sizes, its constants folded, in place.

    Args:
        winograd: convolutions by minimal filtering: for float32 only, where it costs a few 1e-6 of rounding; in reduced
            precision the rounding of its intermediate sums would show.

    Returns:
        Name of each rewrite -> how many nodes it changed.
    """
    done = {"split_products": split_products(model), "interleaving": use_sums_for_interleaving(model)}
    if winograd:
        done["phase_convolutions"] = use_shared_phases(model)
        done["spatial_winograd"] = use_spatial_winograd(model)
        done["temporal_winograd"] = use_temporal_winograd(model)
    return done


def fold_constants(model: Any) -> None:
    """Kernels that the graph slices or reshapes become the constants that the rewrites look for."""
    from openvino.passes import ConstantFolding, Manager

    manager = Manager()
    manager.register_pass(ConstantFolding())
    manager.run_passes(model)
