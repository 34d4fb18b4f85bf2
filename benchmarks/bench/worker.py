"""A child process that does the timed work: ``python -m consisti2v_rt.benchmarks.bench.worker``, one JSON object a line
in and out; and the same seen from the parent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ...errors import UserError, first_line
from ...runtime.child_process import answer_in, neutral_place
from .machine import GpuMeter, own_peak_bytes, require
from .targets import make_target

_SAMPLE_SECONDS = 0.2


class WorkFailedError(Exception):
    """The child could not do what it was asked; the text is one sentence."""


class WorkerProcess:
    """A process around one target, ended with the context.

    Args:
        target: what it is to be, as :func:`.targets.make_target` takes it; paths absolute.

    Attributes:
        start_seconds: until the child is ready to load: interpreter and imports.
        host_peak_bytes: largest resident memory of the child and all it started, by samples five times a second and
            the system's own high-water mark of the child.
        device_peak_bytes: the same on the first GPU; None without one.
    """

    def __init__(self, target: Mapping[str, Any]) -> None:
        self._psutil, self._meter = require("psutil"), GpuMeter.open()
        self.host_peak_bytes = 0
        self.device_peak_bytes: int | None = None if self._meter is None else 0
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (lives as long)
        started = time.perf_counter()
        # A group of its own: a Ctrl-C reaches the parent alone, which then ends the child.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            **neutral_place(),
        )
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        try:
            self.ask("target", target=dict(target))
            self.start_seconds = time.perf_counter() - started
        except BaseException:
            self._kill()
            raise

    def ask(self, what: str, on_progress: Callable[[float], None] = lambda share: None, **arguments: Any) -> Any:
        """Send a request and wait for its answer.

        Raises:
            WorkFailedError: it failed, the process ended, or it wrote something else.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            answer = answer_in(line)
            if answer is None:
                raise WorkFailedError(f"its process wrote {' '.join(line.split())[:100]!r} in place of an answer")
            if "error" in answer:
                raise WorkFailedError(answer["error"])
            if "progress" not in answer:
                return answer["answer"]
            on_progress(answer["progress"])
        # Why a process that ended did.
        if (code := self._process.wait()) == -9:
            raise WorkFailedError("its process was killed: most likely there was not enough memory")
        self._errors.seek(0)
        said = [line.strip() for line in self._errors if line.strip()]
        raise WorkFailedError(": ".join([f"its process ended with code {code}", *said[-1:]]))

    def energy_joules(self) -> float | None:
        """The GPU's energy counter; None without one."""
        return None if self._meter is None else self._meter.energy_joules()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if (kind is None or issubclass(kind, WorkFailedError)) and self._process.poll() is None:
            with suppress(WorkFailedError, OSError, ValueError):
                self.host_peak_bytes = max(self.host_peak_bytes, self.ask("peak"))
        self._kill()

    def _kill(self) -> None:
        """End the process and all it started; it may be in the middle of a run."""
        self._done.set()
        self._sampler.join()
        for process in reversed(self._tree()):
            with suppress(self._psutil.Error):
                process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(OSError):
                if stream is not None:
                    stream.close()

    def _tree(self) -> list[Any]:
        with suppress(self._psutil.Error):
            child = self._psutil.Process(self._process.pid)
            return [child, *child.children(recursive=True)]
        return []

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            processes, resident = self._tree(), 0
            for process in processes:
                with suppress(self._psutil.Error):
                    resident += process.memory_info().rss
            self.host_peak_bytes = max(self.host_peak_bytes, resident)
            if self._meter is not None:
                used = self._meter.used_bytes(process.pid for process in processes)
                self.device_peak_bytes = max(self.device_peak_bytes or 0, used)


# -- the child ---------------------------------------------------------------------------------------------------------


def main() -> None:
    """Answer requests until the parent closes its end."""
    end_with_parent()
    # What libraries print goes to the error stream: the output belongs to the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    target: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        try:
            if what == "target":
                target = make_target(request["target"])
                send(answer=None)
            elif what == "peak":
                send(answer=own_peak_bytes())
            else:
                send(answer=getattr(target, what)(**request, report=lambda share: send(progress=share)))
        except UserError as error:
            send(error=str(error))
        except Exception as error:  # whatever a library raises is why this target cannot run
            send(error=f"{type(error).__name__}: {first_line(error)}")


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
