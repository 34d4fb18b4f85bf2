"""The process that builds one plan: ``python -m consisti2v_rt.export.engines.worker``.

The builder stops between its steps only, which can be a minute apart, and ends its process where it fails badly. In a
process of its own it can be ended at once, its memory is its own, and its end is not the program's.

It reads one JSON object with the fields of :class:`Order` and writes JSON lines: ``progress`` as it goes, then one
``plan`` or one ``refused``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ...errors import UserError
from ...runtime.bundle.bundle import Bundle
from ...runtime.commands.ending_signals import ENDING_SIGNALS
from ...runtime.gpu.device import probe
from .libraries import find_flavour, load_library
from .monitor import BuildProgress
from .plan import PlanRequest, build_plan
from .shapes import engine_shapes, parse_ranges
from .targets import find_target


@dataclass(frozen=True)
class Order:
    """What is to be built, in words that another process understands."""

    bundle: str
    stage: str
    precision: str
    target: str
    flavour: str
    dynamic: tuple[str, ...]
    stripped: bool
    plan: str
    """File to write."""


def main(order: TextIO, answers: TextIO) -> None:
    """Build as ordered."""

    def answer(kind: str, content: Any) -> None:
        # Where nobody listens any more, the pipe is broken: the builder ends with this process.
        answers.write(json.dumps({kind: content}) + "\n")
        answers.flush()

    def on_progress(progress: BuildProgress) -> None:
        answer("progress", dataclasses.asdict(progress))

    wanted = Order(**json.load(order))
    try:
        bundle = Bundle.open(wanted.bundle, verify=False)
        manifest = bundle.manifest
        stages = manifest.stages if wanted.precision == "fp32" else manifest.variants[wanted.precision]
        graph, flavour = stages[wanted.stage], find_flavour(wanted.flavour)
        shapes = engine_shapes(graph, manifest.model, parse_ranges(wanted.dynamic, manifest.model))
        # Hashed as it is read: a damaged graph would give a damaged engine.
        onnx = bundle.graph(graph, hashed=True)
        request = PlanRequest(wanted.stage, onnx, shapes, flavour, find_target(wanted.target, probe()), wanted.stripped)
        plan = build_plan(load_library(flavour), request, Path(wanted.plan), on_progress)
        answer("plan", dataclasses.asdict(plan))
    except UserError as error:
        answer("refused", str(error))
    except OSError as error:
        answer(
            "refused",
            f"the plan of stage {wanted.stage} cannot be written into bundle {wanted.bundle} "
            f"({error.strerror or error}): check space and permissions.",
        )


if __name__ == "__main__":
    # They reach every process of a terminal or service; the one that was asked decides, and ends this one.
    for number in (signal.SIGINT, *ENDING_SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    # The library itself may print, in C++ too: what it says goes to the error stream, not among the answers.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    main(sys.stdin, channel)
