"""Rows on several workers of this machine: a process each, on a GPU of its own where there are several."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..errors import UserError
from .animator import Animator, Plan
from .rows import BatchRow

_DIED = (
    "the process that ran this row ended by itself (exit code {code}), most often for lack of memory: run fewer "
    "workers, or make the video smaller."
)


def run_in_processes(
    plan: Plan, rows: Sequence[BatchRow], folder: Path, workers: int, visible: Sequence[str | None]
) -> Iterator[dict[str, Any]]:
    """Run rows in processes and give each row's line of the results as it ends, in any order.

    A process that dies fails its row and is started again for the next one.

    Args:
        visible: for each worker the GPU that it sees, as CUDA_VISIBLE_DEVICES names it; None: as this process.

    Raises:
        UserError: a worker cannot open the bundle.
    """
    waiting: queue.SimpleQueue[BatchRow | None] = queue.SimpleQueue()
    ended: queue.SimpleQueue[dict[str, Any] | UserError] = queue.SimpleQueue()
    for row in rows:
        waiting.put(row)
    lanes = [_Lane(plan, folder, visible[number % len(visible)], waiting, ended) for number in range(workers)]
    try:
        for lane in lanes:
            waiting.put(None)
            lane.thread.start()
        for _ in rows:
            line = ended.get()
            if isinstance(line, UserError):
                raise line
            yield line
    finally:
        for lane in lanes:
            lane.stop()


class _Lane:
    """A thread that feeds one process at a time."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        visible: str | None,
        waiting: queue.SimpleQueue[BatchRow | None],
        ended: queue.SimpleQueue[dict[str, Any] | UserError],
    ) -> None:
        self._plan, self._folder, self._visible = plan, folder, visible
        self._waiting, self._ended = waiting, ended
        self._process: Any = None
        self._pipe: Any = None
        self._stopped = False
        self.thread = threading.Thread(target=self._feed, daemon=True)

    def stop(self) -> None:
        """End the process, whatever it does."""
        self._stopped = True
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _feed(self) -> None:
        while (row := self._waiting.get()) is not None and not self._stopped:
            try:
                if self._process is None:
                    self._start()
                self._pipe.send(row)
                self._ended.put(self._pipe.recv())
            except (EOFError, OSError):
                if self._stopped:
                    return
                self._process.join()
                fault = _DIED.format(code=self._process.exitcode)
                self._process = None
                self._ended.put(row.result(fault))
            except UserError as error:
                self._ended.put(error)
                return
        if self._process is not None:
            self._pipe.close()
            self._process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        process = context.Process(
            target=_work, args=(other, self._plan, self._folder, self._visible), name="consisti2v batch", daemon=True
        )
        process.start()
        other.close()
        self._process = process
        opened = self._pipe.recv()
        if opened is not None:
            raise UserError(opened)


def _work(pipe: Connection, plan: Plan, folder: Path, visible: str | None) -> None:
    """The child: opens the bundle, then a row in, a line out, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    try:
        animator = Animator(plan)
    except UserError as error:
        pipe.send(str(error))
        return
    pipe.send(None)
    try:
        while True:
            row: BatchRow = pipe.recv()
            pipe.send(animator.run(row, folder))
    except (EOFError, OSError):
        pass
