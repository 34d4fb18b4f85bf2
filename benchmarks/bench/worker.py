"""The child process: ``python -m consisti2v_rt.benchmarks.bench.worker``, one JSON object a line in and out."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from ...errors import UserError
from .resident_memory import own_peak_bytes
from .subjects import Subject, make_subject


def main() -> None:
    """Answer requests until the parent closes its end."""
    end_with_parent()
    # What libraries print goes to the error stream: the output belongs to the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    subject: Subject | None = None
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        try:
            if what == "subject":
                subject = make_subject(request["subject"])
                send(answer=None)
            elif what == "peak":
                send(answer=own_peak_bytes())
            else:
                assert subject is not None
                methods: dict[str, Callable[..., Any]] = {
                    "load": subject.load,
                    "run": subject.run,
                    "output": subject.output,
                }
                send(answer=methods[what](**request, report=lambda share: send(progress=share)))
        except UserError as error:
            send(error=str(error))
        except Exception as error:  # whatever a library raises is why this subject cannot run
            first_line = (str(error).strip().splitlines() or [""])[0]
            send(error=f"{type(error).__name__}: {first_line}")


def end_with_parent() -> None:
    """Let this process end soon after the one that started it, also in the midst of a run (POSIX)."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
