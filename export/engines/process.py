"""A build in a process of its own, and its end when this one is interrupted."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from ...errors import UserError
from ...runtime.child_process import answer_in, neutral_place
from .attention import Attentions, Decomposed
from .monitor import BuildProgress, OnProgress
from .plan import Plan
from .worker import Order

_WORKER = f"{__package__}.worker"


def run_build(order: Order, on_progress: OnProgress) -> Plan:
    """Build one plan.

    Raises:
        UserError: what the builder refused, or how its process ended.
        KeyboardInterrupt: passed on; the process has ended by then.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", _WORKER],
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
            process.stdin.write(json.dumps(dataclasses.asdict(order)))
            process.stdin.close()
            plan = _listen(_answers(process.stdout, order.stage), on_progress)
            process.wait()
        finally:
            # Nothing to end where it has ended by itself.
            process.kill()
            process.wait()
        if plan is not None:
            return plan
        errors.seek(0)
        last = ([line.strip() for line in errors if line.strip()] or ["no reason given"])[-1][:300].rstrip(".")
        raise UserError(
            f"the builder's process ended while it built stage {order.stage} (exit code {process.returncode}, {last}): "
            "free memory, or try another --precision or --target."
        )


def _answers(lines: Iterable[str], stage: str) -> Iterator[dict[str, Any]]:
    """What the process says, a JSON object a line.

    Raises:
        UserError: something else got into the channel, which is the process's failure.
    """
    for line in lines:
        answer = answer_in(line)
        if answer is None:
            said = " ".join(line.split())[:100]
            raise UserError(
                f"the builder's process wrote {said!r} in place of an answer while it built stage {stage}: "
                "look for what prints when Python starts (a sitecustomize or .pth file), and build again."
            )
        yield answer


def _listen(answers: Iterable[dict[str, Any]], on_progress: OnProgress) -> Plan | None:
    for answer in answers:
        if "progress" in answer:
            on_progress(BuildProgress(**answer["progress"]))
        elif "refused" in answer:
            raise UserError(answer["refused"])
        else:
            return _plan(answer["plan"])
    return None


def _plan(fields: dict[str, Any]) -> Plan:
    """From JSON, which has lists for tuples."""
    decomposed = tuple(Decomposed(**entry) for entry in fields["attentions"]["decomposed"])
    attentions = Attentions(tuple(fields["attentions"]["fused"]), decomposed)
    sequences = {name: tuple(fields[name]) for name in ("activation_bytes", "warnings")}
    return Plan(**(fields | sequences | {"attentions": attentions}))
