"""The costs of a whole model: counted from a bundle, or read from a small JSON table counted earlier."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...kernels.guidance import BRANCHES
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import STAGES
from ...runtime.files.guarded_read import RECORD, read_json
from .graph import KINDS, Graph, read_graph
from .work import MemoryElements, StageCosts, Work, Works, count_stage

FULL_SIZE = Path(__file__).with_name("full_size.json")
"""The published size, 256 x 256 pixels, 16 frames, batch 2: counted once from a bundle of
``consisti2v export --random-weights full``. Random weights cost what trained ones do.
"""
SCHEMA_VERSION = 1
_REMEDY = "write one with 'consisti2v bench --predict --save-costs'"


@dataclass(frozen=True)
class ModelCosts:
    """Stages by name, and how often a video runs them."""

    name: str
    frames: int
    height: int
    width: int
    rows: int
    """Batch of the counted U-Net."""
    guidance: str
    stages: dict[str, StageCosts]

    @property
    def clip(self) -> dict[str, Any]:
        """All but the stages."""
        return {key: value for key, value in vars(self).items() if key != "stages"}

    def runs(self, steps: int) -> dict[str, int]:
        """How often each stage runs for one video of one clip."""
        prompts = 1 if self.guidance == "none" else 2
        unet = steps * -(-BRANCHES[self.guidance] // self.rows)
        texts = {"text_encoder": prompts, "conditioning": prompts}
        return {**texts, "vae_encoder": 1, "unet": unet, "vae_decoder": self.frames}


def load_costs(path: Path) -> ModelCosts:
    """Costs of a bundle's folder or of a saved table; weights are not read.

    Raises:
        UserError: neither of the two, or a graph whose shapes are not known.
    """
    if path.is_file():
        return _read_table(path)
    bundle = Bundle.open(path, verify=False)
    stages = {name: count_stage(stage_graph(bundle, name)) for name in STAGES}
    model = bundle.manifest.model
    rows = model.rows or BRANCHES[model.guidance]
    return ModelCosts(bundle.manifest.name, model.frames, model.height, model.width, rows, model.guidance, stages)


def stage_graph(bundle: Bundle, name: str) -> Graph:
    """One stage's graph with its shapes, without its weights; an open batch is that of the bundle's guidance."""
    return read_graph(bundle.file(bundle.manifest.stages[name].file), BRANCHES[bundle.manifest.model.guidance])


def save_table(costs: ModelCosts, path: Path) -> None:
    """Write costs as a table that :func:`load_costs` reads."""

    def rows(works: Works) -> list[list[str | int]]:
        """kind, count, FLOPs, weights, elements read, elements written."""
        return [[work.kind, count, work.flops, work.weights, work.read, work.written] for work, count in works.items()]

    stages = {
        name: {"memory": asdict(stage.memory), "kernels": rows(stage.kernels), "nodes": rows(stage.nodes)}
        for name, stage in costs.stages.items()
    }
    text = json.dumps({"schema_version": SCHEMA_VERSION, **costs.clip, "stages": stages}, indent=1)
    # One row of numbers a line: the innermost lists are joined.
    text = re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    path.write_text(text + "\n", encoding="utf-8")


def _read_table(path: Path) -> ModelCosts:
    try:
        data = read_json(path, RECORD(_REMEDY))
        if data.pop("schema_version") != SCHEMA_VERSION:
            raise ValueError("another schema version")
        stages = {
            name: StageCosts(_works(stage["kernels"]), _works(stage["nodes"]), MemoryElements(**stage["memory"]))
            for name, stage in data.pop("stages").items()
        }
        if missing := [name for name in STAGES if name not in stages]:
            raise ValueError(f"no stage {missing[0]}")
        return ModelCosts(**data, stages=stages)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a table of costs ({error}): {_REMEDY}.") from None


def _works(rows: list[list[Any]]) -> Works:
    works = {Work(kind, *numbers): count for kind, count, *numbers in rows}
    if unknown := {work.kind for work in works} - set(KINDS):
        raise ValueError(f"unknown kind {min(unknown)!r}")
    return works
