"""The costs of a whole model: counted from a bundle, or read from a small JSON table counted earlier."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...runtime.bundle.bundle import Bundle
from ...runtime.bundle.manifest import STAGES
from ...runtime.files.guarded_read import RECORD, read_json
from .graph_shapes import Graph, read_graph
from .kinds import KINDS
from .memory import MemoryElements
from .stage_costs import StageCosts, Work, count_stage, node_works

FULL_SIZE = Path(__file__).with_name("full_size.json")
"""The published size, 256 x 256 pixels, 16 frames, batch 2: counted once from a bundle of
``consisti2v export --random-weights full``. Random weights cost what trained ones do.
"""

SCHEMA_VERSION = 1
ROWS = {"none": 1, "text": 2, "both": 3}


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

    def runs(self, steps: int) -> dict[str, int]:
        """How often each stage runs for one video of one clip."""
        prompts = 1 if self.guidance == "none" else 2
        unet_turns = -(-ROWS[self.guidance] // self.rows)
        return {
            "text_encoder": prompts,
            "conditioning": prompts,
            "vae_encoder": 1,
            "unet": steps * unet_turns,
            "vae_decoder": self.frames,
        }


def load_costs(path: Path) -> ModelCosts:
    """Costs of a bundle's folder or of a saved table.

    Raises:
        UserError: neither of the two, or a graph whose shapes are not known.
    """
    return _read_table(path) if path.is_file() else count_bundle(path)


def count_bundle(path: Path) -> ModelCosts:
    """Count every stage of a bundle; weights are not read."""
    bundle = Bundle.open(path, verify=False)
    stages = {name: count_stage(stage_graph(bundle, name)) for name in STAGES}
    model = bundle.manifest.model
    rows = model.rows or ROWS[model.guidance]
    return ModelCosts(bundle.manifest.name, model.frames, model.height, model.width, rows, model.guidance, stages)


def unet_nodes(path: Path) -> list[tuple[str, Work]]:
    """Every node of a bundle's U-Net by name.

    Raises:
        UserError: not a bundle; a saved table has no names.
    """
    if path.is_file():
        raise UserError(f"{path} is a table of counts, which has no single nodes: give a bundle's folder.")
    return list(node_works(stage_graph(Bundle.open(path, verify=False), "unet")))


def save_table(costs: ModelCosts, path: Path) -> None:
    """Write costs as a table that :func:`load_costs` reads."""
    data: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **{k: v for k, v in vars(costs).items() if k != "stages"}}
    data["stages"] = {
        name: {"memory": asdict(stage.memory), "kernels": _rows(stage.kernels), "nodes": _rows(stage.nodes)}
        for name, stage in costs.stages.items()
    }
    # One row of numbers a line: the innermost lists are joined.
    text = re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", json.dumps(data, indent=1))
    path.write_text(text + "\n", encoding="utf-8")


def _rows(works: dict[Work, int]) -> list[list[str | int]]:
    """kind, count, FLOPs, weights, elements read, elements written."""
    return [[work.kind, count, work.flops, work.weights, work.read, work.written] for work, count in works.items()]


def _read_table(path: Path) -> ModelCosts:
    try:
        data = read_json(path, RECORD("write a table with 'consisti2v bench --predict --save-costs'"))
        if data["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {data['schema_version']}")
        stages = {
            name: StageCosts(_works(stage["kernels"]), _works(stage["nodes"]), MemoryElements(**stage["memory"]))
            for name, stage in data["stages"].items()
        }
        own = {key: data[key] for key in ("name", "frames", "height", "width", "rows", "guidance")}
        if missing := [name for name in STAGES if name not in stages]:
            raise ValueError(f"no stage {missing[0]}")
        return ModelCosts(**own, stages=stages)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not a table of costs ({error}): write one with 'consisti2v bench --predict --save-costs'."
        ) from None


def _works(rows: list[list[Any]]) -> dict[Work, int]:
    works = {Work(kind, *numbers): count for kind, count, *numbers in rows}
    if unknown := {work.kind for work in works} - set(KINDS):
        raise ValueError(f"unknown kind {min(unknown)!r}")
    return works


def stage_graph(bundle: Bundle, name: str) -> Graph:
    """One stage's graph with its shapes, without its weights; an open batch is that of the bundle's guidance."""
    return read_graph(bundle.file(bundle.manifest.stages[name].file), ROWS[bundle.manifest.model.guidance])
