"""The check of a captured step: an empty graph, one that works elsewhere, one that cannot be captured."""

from __future__ import annotations

import gc
import logging
from typing import Any

import numpy as np
import pytest

from consisti2v_rt import UserError
from consisti2v_rt.runtime.gpu.memory import GpuMemory
from consisti2v_rt.runtime.gpu.step_graph import StepGraph, capture_and_check, difference


class Step:
    """x <- 2 x + 1, the "prediction" 2 x written on the way; `elsewhere` is what a broken capture runs instead."""

    def __init__(self, gpu: Any, view: Any, push: Any) -> None:
        self.gpu, self._view, self.push = gpu, view, push
        memory = GpuMemory(gpu)
        self.state = memory.upload(np.arange(4, dtype=np.float32))
        self.prediction = memory.zeros((4,), "float32")
        self.memory = memory
        self.capturing_work: Any = self.work
        self.eager_runs = 0

    def work(self) -> None:
        def run() -> None:
            self._view(self.prediction)[...] = 2 * self._view(self.state)
            self._view(self.state)[...] = self._view(self.prediction) + 1

        self.push(self.gpu.stream, run)

    def enqueue(self) -> None:
        if self.gpu.capturing:
            self.capturing_work()
        else:
            self.eager_runs += 1
            self.work()

    def graph(self) -> StepGraph:
        return capture_and_check(
            self.gpu,
            self.enqueue,
            changes=[self.state, self.prediction],
            poisoned=[self.prediction],
            compared=[self.prediction, self.state],
        )

    def result(self) -> list[float]:
        return [float(x) for x in self.memory.download(self.state)]


@pytest.fixture
def step(gpu, device_view, push_work):
    return Step(gpu, device_view, push_work)


def test_checking_leaves_everything_as_it_was(step):
    graph = step.graph()
    assert graph.graph is not None and graph.reason == ""
    assert step.result() == [0, 1, 2, 3] and not step.memory.download(step.prediction).any()
    graph.graph.launch(step.gpu.stream)
    assert step.result() == [1, 3, 5, 7]
    graph.graph.launch(step.gpu.stream)
    assert step.result() == [3, 7, 11, 15]
    assert step.eager_runs == 1, "steps are replayed, not enqueued"


def test_an_empty_graph_is_found_by_the_poison(step, caplog):
    step.capturing_work = lambda: None
    with caplog.at_level(logging.WARNING, "consisti2v_rt"):
        graph = step.graph()
    assert graph.graph is None and "the graph is empty" in graph.reason
    assert "without a CUDA graph" in caplog.text
    assert step.result() == [0, 1, 2, 3]


def test_work_on_another_stream_leaves_an_empty_graph(step, gpu):
    other = gpu.new_stream()
    step.capturing_work = lambda: step.push(other, lambda: None)
    assert "empty" in step.graph().reason


def test_a_graph_that_computes_something_else(step, gpu, device_view):
    step.capturing_work = lambda: step.push(gpu.stream, lambda: device_view(step.prediction).fill(9))
    graph = step.graph()
    assert graph.graph is None and graph.reason.startswith("the captured step's prediction differs")


def test_work_that_cannot_be_captured(step):
    def refuse() -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    step.capturing_work = refuse
    graph = step.graph()
    assert graph.reason == "the step cannot be captured (operation not permitted when stream is capturing)"
    assert step.result() == [0, 1, 2, 3]


def test_a_first_step_that_is_not_finite(step, device_view):
    step.memory.upload(np.array([0, np.inf, 0, 0], np.float32), step.state)
    with pytest.raises(UserError, match="not finite"):
        step.graph()


def test_garbage_is_not_collected_during_a_capture(step, gpu):
    """It may hold device memory, and a free on a capturing stream breaks the capture."""

    class Holder:
        def __init__(self) -> None:
            self.array, self.cycle = step.memory.zeros((4,), "float32"), self

    def work() -> None:
        made.cycle = None  # frees nothing: the holder is one of a cycle
        step.work()
        [Holder.__new__(Holder) for _ in range(1000)]

    made = Holder()
    step.capturing_work = work
    threshold = gc.get_threshold()
    Holder()  # garbage at once
    gc.set_threshold(1)
    try:
        captured = step.graph()
    finally:
        gc.set_threshold(*threshold)
    assert captured.reason == "" and gc.isenabled()


def test_a_free_on_a_capturing_stream_is_refused(step):
    arrays = [step.memory.zeros((4,), "float32")]
    step.capturing_work = lambda: (step.work(), arrays.clear())
    assert step.graph().graph is None


def test_bfloat16_is_compared_as_numbers():
    def bits(values: list[float]) -> np.ndarray:
        return (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)

    assert difference(bits([1, 2]), bits([1, 2])) == ""
    assert "differs" in difference(bits([1, 2]), bits([1, 2.5]))
    assert "empty" in difference(bits([1, 2]), np.full(2, 0xFFFF, np.uint16))
