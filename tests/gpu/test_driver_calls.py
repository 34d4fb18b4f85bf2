"""The driver layer by itself on a GPU, or on the driver that runs on the host (see test_driver_on_host.py)."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

from consisti2v_rt import UserError
from consisti2v_rt.runtime.gpu.device import Gpu, open_gpu, probe
from consisti2v_rt.runtime.gpu.memory import GpuMemory

pytestmark = pytest.mark.gpu


@pytest.fixture
def driver() -> Gpu:
    if not probe().found:
        pytest.skip(f"needs an NVIDIA GPU: {probe().reason}")
    open_gpu().make_current()
    return open_gpu()


@pytest.fixture
def memory(driver: Gpu) -> GpuMemory:
    return GpuMemory(driver)


def test_what_is_uploaded_may_be_forgotten(memory):
    """The driver may read it later: until then it must not be another array's memory."""
    arrays = [memory.upload(np.full(1 << 16, number, np.float32)) for number in range(8)]
    gc.collect()
    others = [np.full(1 << 16, -1, np.float32) for _ in range(8)]
    assert [memory.download(array)[-1] for array in arrays] == list(range(8)) and len(others) == 8


def test_rows_of_an_array(memory):
    array = memory.upload(np.arange(12, dtype=np.int64).reshape(4, 3))
    assert memory.download(array[1:3]).tolist() == [[3, 4, 5], [6, 7, 8]]
    memory.fill(array[:1], 255)
    assert memory.download(array)[:2].tolist() == [[-1, -1, -1], [3, 4, 5]]


def test_a_stream_waits_for_an_event_of_another(driver, memory):
    source, target = memory.upload(np.arange(1 << 20, dtype=np.int32)), memory.zeros((1 << 20,), "int32")
    other = driver.new_stream()
    driver.wait(other, driver.record(driver.stream))
    memory.copy(target, source, other)
    event = driver.record(other)
    driver.wait(driver.stream, event)
    assert (memory.download(target) == np.arange(1 << 20)).all() and event.is_done
    later = driver.record(other)
    later.sync()
    assert later - event >= 0


def test_pinned_memory(driver, memory):
    pinned, array = memory.pinned((5,), "float32"), memory.upload(np.arange(5, dtype=np.float32))
    memory.copy(pinned, array)
    driver.stream.sync()
    assert pinned.array.tolist() == [0, 1, 2, 3, 4]


def test_a_graph_runs_as_often_as_it_is_launched(driver, memory):
    one, two = memory.upload(np.array([7], np.int32)), memory.zeros((1,), "int32")
    graph = driver.capture(lambda: memory.copy(two, one))
    assert memory.download(two) == [0], "nothing runs while it is captured"
    for number in (1, 2):
        memory.upload(np.array([number], np.int32), one)
        graph.launch(driver.stream)
        assert memory.download(two) == [number]


class _StopIt(BaseException):
    """As a Ctrl-C is: no Exception."""


@pytest.mark.parametrize("error", [RuntimeError("out of luck"), _StopIt("stop")], ids=["error", "stop"])
@pytest.mark.parametrize("waits", [False, True], ids=["captured", "invalidated"])
def test_what_goes_wrong_in_a_capture_is_told_and_the_stream_goes_on(driver, memory, error, waits):
    array = memory.zeros((1,), "int32")

    def work() -> None:
        memory.fill(array, 1)
        if waits:  # which no capture allows
            with pytest.raises(Exception, match="CUDA"):
                driver.stream.sync()
        raise error

    with pytest.raises(type(error)) as raised:
        driver.capture(work)
    assert raised.value is error
    assert memory.download(array) == [0]
    test_a_graph_runs_as_often_as_it_is_launched(driver, memory)


def test_waiting_while_capturing_is_refused(driver, memory):
    with pytest.raises(Exception, match="CUDA"):
        driver.capture(driver.stream.sync)
    assert memory.download(memory.zeros((2,), "uint8")).tolist() == [0, 0]


def test_another_thread_has_to_claim_the_gpu(driver, memory):
    found: list[Any] = []

    def work() -> None:
        driver.make_current()
        found.append(memory.download(memory.upload(np.array([3.0], np.float32)))[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [3.0]


def test_too_much_memory_is_refused_in_one_sentence(driver):
    free, total = driver.free_and_total()
    assert 0 < free <= total
    with pytest.raises(UserError, match=r"no room for \d+ MiB more .* or pass --low-vram\.$"):
        driver.allocate(2 * total)
    assert driver.driver_version().split(".")[0].isdigit()
