"""A child process that does the timed work, seen from the parent."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from ...runtime.child_process import answer_in, neutral_place
from .device_meter import DeviceMeter
from .machine import require

_SAMPLE_SECONDS = 0.2


class WorkFailedError(Exception):
    """The child could not do what it was asked; the text is one sentence."""


def _parsed(line: str) -> dict[str, Any]:
    answer = answer_in(line)
    if answer is None:
        raise WorkFailedError(f"its process wrote {' '.join(line.split())[:100]!r} in place of an answer")
    return answer


class WorkerProcess:
    """A process of :mod:`.worker` around one subject, ended with the context.

    Args:
        subject: what it is to be, as :func:`.subjects.make_subject` takes it; paths absolute.

    Attributes:
        start_seconds: until the child is ready to load: interpreter and imports.
        host_peak_bytes: largest resident memory of the child and all it started, by samples five times a second and
            the system's own high-water mark of the child.
        device_peak_bytes: the same on the first GPU; None without one.
    """

    def __init__(self, subject: Mapping[str, Any]) -> None:
        psutil = require("psutil")
        self._meter = DeviceMeter.open()
        self.host_peak_bytes = 0
        self.device_peak_bytes: int | None = None if self._meter is None else 0
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (lives as long)
        flags = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
        started = time.perf_counter()
        # A group of its own: a Ctrl-C reaches the parent alone, which then ends the child.
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            creationflags=flags,
            **neutral_place(),
        )
        self._family = psutil.Process(self._process.pid)
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()
        try:
            self.ask("subject", subject=dict(subject))
            self.start_seconds = time.perf_counter() - started
        except BaseException:
            self.kill()
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
            answer = _parsed(line)
            if "progress" in answer:
                on_progress(answer["progress"])
                continue
            if "error" in answer:
                raise WorkFailedError(answer["error"])
            return answer["answer"]
        raise WorkFailedError(self._last_words())

    def energy_joules(self) -> float | None:
        """The GPU's energy counter; None without one."""
        return None if self._meter is None else self._meter.energy_joules()

    def close(self) -> None:
        """Ask for its memory's high-water mark, then end it."""
        with suppress(WorkFailedError, OSError, ValueError):
            if self._process.poll() is None:
                self.host_peak_bytes = max(self.host_peak_bytes, self.ask("peak"))
        self.kill()

    def kill(self) -> None:
        """End the process and all it started; it may be in the middle of a run."""
        self._done.set()
        self._sampler.join()
        for process in reversed(self._tree()):
            with suppress(self._gone()):
                process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(OSError):
                if stream is not None:
                    stream.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None or issubclass(kind, WorkFailedError):
            self.close()
        else:
            self.kill()

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            processes = self._tree()
            self.host_peak_bytes = max(self.host_peak_bytes, sum(self._resident(processes)))
            if self._meter is not None and self.device_peak_bytes is not None:
                used = self._meter.used_bytes(process.pid for process in processes)
                self.device_peak_bytes = max(self.device_peak_bytes, used)

    def _tree(self) -> list[Any]:
        with suppress(self._gone()):
            return [self._family, *self._family.children(recursive=True)]
        return []

    def _resident(self, processes: Iterable[Any]) -> Iterable[int]:
        for process in processes:
            with suppress(self._gone()):
                yield process.memory_info().rss

    @staticmethod
    def _gone() -> type[Exception]:
        error: type[Exception] = require("psutil").Error
        return error

    def _last_words(self) -> str:
        """Why a process that ended did."""
        code = self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        if code == -9:
            return "its process was killed: most likely there was not enough memory"
        said = f": {lines[-1]}" if lines else ""
        return f"its process ended with code {code}{said}"
