"""One plan in a process of its own: ``python -m consisti2v_rt.export.engines.process``.

The builder stops between its steps only, which can be a minute apart, and ends its process where it fails badly. In a
process of its own it can be ended at once, its memory is its own, and its end is not the program's.

The process reads one JSON object, the arguments of :func:`.job.settle` and the file "plan" to write. It writes JSON
lines: ``progress`` as it goes, then one ``plan`` with its facts or one ``refused``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ...errors import UserError
from ...runtime.child_process import answer_in, neutral_place
from ...runtime.commands.ending_signals import ENDING_SIGNALS
from .job import settle
from .libraries import load_library
from .plan import PlanRequest, build_plan

_MODULE = f"{__package__}.process"


def run_build(order: dict[str, Any], on_progress: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Build one plan; returns its facts.

    Raises:
        UserError: what the builder refused, or how its process ended.
        KeyboardInterrupt: passed on; the process has ended by then.
    """
    (stage,) = order["stages"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            errors="replace",
            **neutral_place(),
        )
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps(order))
            process.stdin.close()
            for line in process.stdout:
                answer = answer_in(line)
                if answer is None:
                    raise UserError(
                        f"the builder's process wrote {' '.join(line.split())[:100]!r} in place of an answer while it "
                        f"built stage {stage}: look for what prints when Python starts (a sitecustomize or .pth file), "
                        "and build again."
                    )
                if "refused" in answer:
                    raise UserError(answer["refused"])
                if "plan" in answer:
                    return dict(answer["plan"])
                on_progress(*answer["progress"])
            process.wait()
        finally:
            # Nothing to end where it has ended by itself.
            process.kill()
            process.wait()
        errors.seek(0)
        last = ([line.strip() for line in errors if line.strip()] or ["no reason given"])[-1][:300].rstrip(".")
        raise UserError(
            f"the builder's process ended while it built stage {stage} (exit code {process.returncode}, {last}): "
            "free memory, or try another --precision or --target."
        )


def main(orders: TextIO, answers: TextIO) -> None:
    """Build as ordered."""

    def answer(kind: str, content: Any) -> None:
        # Where nobody listens any more, the pipe is broken: the builder ends with this process.
        answers.write(json.dumps({kind: content}) + "\n")
        answers.flush()

    order = json.load(orders)
    path, (stage,) = Path(order.pop("plan")), order["stages"]
    try:
        job = settle(**order)
        graph = job.graph(stage)
        # Hashed as it is read: a damaged graph would give a damaged engine.
        onnx = job.bundle.graph(graph, hashed=True)
        request = PlanRequest(stage, onnx, job.shapes(graph), job.backend, job.target, job.stripped, job.accumulate)
        answer("plan", build_plan(load_library(job.backend), request, path, lambda *at: answer("progress", at)))
    except UserError as error:
        answer("refused", str(error))
    except OSError as error:
        answer(
            "refused",
            f"the plan of stage {stage} cannot be written into bundle {order['bundle']} ({error.strerror or error}): "
            "check space and permissions.",
        )


if __name__ == "__main__":
    # They reach every process of a terminal or service; the one that was asked decides, and ends this one.
    for number in (signal.SIGINT, *ENDING_SIGNALS):
        signal.signal(number, signal.SIG_IGN)
    # The library itself may print, in C++ too: what it says goes to the error stream, not among the answers.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    main(sys.stdin, channel)
