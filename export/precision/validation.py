"""A stage's variant against its float32 graph in ONNX Runtime, on every case, at once after it was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...errors import UserError
from ...runtime.bundle.graph_source import GraphSource
from ...runtime.bundle.manifest import StageSpec, TensorSpec
from ...runtime.session import OnnxCpuSession
from .cases import Array, Case
from .recipe import Recipe
from .simulation import write_simulation


class NotFiniteError(UserError):
    """A stage gives numbers that its precision does not hold."""


@dataclass(frozen=True)
class Loss:
    """How far one case is from float32."""

    seed: int
    rows: int | None
    """Batch of the U-Net, frames of the VAE decoder; None for a stage without."""
    relative_l2: float
    """The worst output's."""


def run_cases(
    graph: GraphSource | Path, spec: StageSpec, cases: Sequence[Case], on_run: Callable[[int], None]
) -> list[dict[str, Array]]:
    """Outputs of a graph for every case, inputs cast to its types; `on_run` is called with the number before each."""
    session = OnnxCpuSession(graph, spec, cases[0].dims, lean=True)
    outputs = []
    for number, case in enumerate(cases):
        on_run(number)
        session.allocate(case.dims)
        for name, array in case.inputs.items():
            session.inputs[name][...] = array
        session.run()
        outputs.append({name: array.copy() for name, array in session.outputs.items()})
    return outputs


def run_variant(
    path: Path,
    spec: StageSpec,
    recipe: Recipe,
    cases: Sequence[Case],
    on_run: Callable[[int], None],
    *,
    float16_sums: bool = False,
) -> list[dict[str, Array]]:
    """Outputs of a variant as a GPU would round them (see :mod:`.simulation`), in float32; with `float16_sums` as one
    would that accumulates products in float16.
    """
    simulation = path.with_name(f"{path.stem}.simulation.onnx")
    try:
        write_simulation(path, simulation, recipe.activations, float16_sums=float16_sums)
        return run_cases(simulation, _widened(spec), cases, on_run)
    finally:
        simulation.unlink(missing_ok=True)


def losses(
    stage: str,
    spec: StageSpec,
    recipe: Recipe,
    cases: Sequence[Case],
    expected: Sequence[dict[str, Array]],
    got: Sequence[dict[str, Array]],
) -> list[Loss]:
    """Compare outputs case by case.

    Raises:
        NotFiniteError: an output is not finite, or is constant.
    """
    found = []
    for case, wanted, outputs in zip(cases, expected, got, strict=True):
        largest = 0.0
        for name, reference in wanted.items():
            exact, rounded = reference.astype(np.float64), outputs[name].astype(np.float64)
            if not np.isfinite(rounded).all() or (rounded.std() == 0 and exact.std() != 0):
                raise NotFiniteError(
                    f"stage {stage} overflows or dies in {recipe.name} (output {name}, seed {case.seed}): "
                    "use bf16 or fp32 for this model."
                )
            largest = max(largest, float(np.linalg.norm(rounded - exact) / max(np.linalg.norm(exact), 1e-30)))
        rows = next((t.shape[0] for t in spec.inputs if t.name == "sample"), None)
        batch = case.dims.get("rows", case.dims.get("frames", rows if isinstance(rows, int) else None))
        found.append(Loss(case.seed, batch, largest))
    return found


def worst(found: Sequence[Loss]) -> float:
    """The largest relative L2 of some losses."""
    return max(loss.relative_l2 for loss in found)


def check_limit(stage: str, recipe: Recipe, found: Sequence[Loss]) -> None:
    """Refuse a stage that strays further than its precision allows.

    Raises:
        UserError: it does.
    """
    if recipe.limit is not None and worst(found) > recipe.limit:
        others = "fp16 or fp32 for this model, or allow more" if recipe.weights else "bf16 or fp32 for this model"
        raise UserError(
            f"stage {stage} in {recipe.name} differs from float32 by {worst(found):.1e} relative L2 "
            f"(allowed {recipe.limit:.0e}): use {others}."
        )


def _widened(spec: StageSpec) -> StageSpec:
    def widen(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(t, dtype="float32") if t.dtype in ("float16", "bfloat16") else t for t in tensors)

    return replace(spec, precision="fp32", inputs=widen(spec.inputs), outputs=widen(spec.outputs))
