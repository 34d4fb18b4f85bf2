"""One loaded model called from many threads: every video is the one that a single thread gets, and calls can be
cancelled while they wait and while they run.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from consisti2v_rt import ImageToVideo, UserError
from consisti2v_rt.errors import CancelledError
from consisti2v_rt.runtime.call_queue import CallQueue, CancelToken

FAST = {"num_inference_steps": 2, "seed": 3, "guidance_scale_txt": 1.0}
THREADS = 8
CALLS: list[dict[str, Any]] = [
    {"height": height, "width": width, "seed": seed, **guidance}
    for seed, (height, width) in enumerate([(64, 64), (48, 80), (64, 48)])
    for guidance in (
        {"guidance_scale_txt": 1.0},
        {"guidance_scale_txt": 7.5},
        {"guidance_scale_txt": 7.5, "guidance_scale_img": 1.5},
        {"guidance_scale_txt": 7.5, "guidance_interval": (0.5, 1.0), "autoregress_steps": 2},
    )
]


@pytest.fixture(scope="module")
def open_model(dynamic_bundle):
    return ImageToVideo.from_bundle(dynamic_bundle, verify=False, device="cpu", threads=1)


def until(condition: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.005)


@pytest.mark.slow
def test_eight_threads_get_the_videos_of_one(open_model, photo):
    """Mixed sizes and guidance, and a cancelled call in the middle."""
    options = [{**FAST, **call} for call in CALLS]
    expected = [open_model(photo, f"prompt {i % 3}", **each) for i, each in enumerate(options)]
    doomed, steps = CancelToken(), []

    def make(i: int) -> Any:
        return open_model(photo, f"prompt {i % 3}", **options[i])

    def make_and_cancel() -> Any:
        def stop(progress: Any) -> None:
            steps.append(progress.step)
            doomed.cancel()

        slow = {**FAST, "num_inference_steps": 40}
        return open_model(photo, "never seen", callback=stop, cancel_token=doomed, **slow)

    with ThreadPoolExecutor(THREADS) as pool:
        halves = [pool.submit(make, i) for i in range(len(options) // 2)]
        cancelled = pool.submit(make_and_cancel)
        halves += [pool.submit(make, i) for i in range(len(options) // 2, len(options))]
        with pytest.raises(CancelledError):
            cancelled.result()
        results = [future.result() for future in halves]
    assert len(steps) == 1
    for result, serial in zip(results, expected, strict=True):
        assert np.array_equal(result.frames, serial.frames)
        assert np.array_equal(result.latents, serial.latents)


def test_cancel_reaches_waiting_calls_and_no_later_one(open_model, photo):
    started, outcomes = threading.Event(), {}

    def animate(name: str, **options: Any) -> None:
        try:
            outcomes[name] = open_model(photo, "a cat", **{**FAST, **options})
        except CancelledError as error:
            outcomes[name] = error

    hold = threading.Thread(
        target=animate, args=("runs",), kwargs={"num_inference_steps": 500, "callback": lambda _: started.set()}
    )
    hold.start()
    assert started.wait(20)
    waiting = [threading.Thread(target=animate, args=(f"waits {i}",)) for i in range(3)]
    for thread in waiting:
        thread.start()
    until(lambda: len(open_model._calls._turns) == 4)
    open_model.cancel()
    for thread in (hold, *waiting):
        thread.join(20)
    assert len(outcomes) == 4 and all(isinstance(outcome, CancelledError) for outcome in outcomes.values())
    assert all(str(outcome) for outcome in outcomes.values())
    assert len(open_model(photo, "a cat", **FAST).frames) == 1


@pytest.mark.slow
def test_a_token_cancels_its_own_call_alone(open_model, photo):
    started, token = threading.Event(), CancelToken()
    options = {**FAST, "num_inference_steps": 30}
    with ThreadPoolExecutor(2) as pool:
        runs = pool.submit(open_model, photo, "a cat", callback=lambda _: started.set(), **options)
        assert started.wait(20)
        waits = pool.submit(open_model, photo, "a cat", cancel_token=token, **FAST)
        until(lambda: len(open_model._calls._turns) == 2)
        token.cancel()
        with pytest.raises(CancelledError):
            waits.result(5)
        assert not runs.done(), "the waiting call ended at once"
        assert len(runs.result().frames) == 1
    with pytest.raises(CancelledError):
        open_model(photo, "a cat", cancel_token=token, **FAST)


def test_bad_input_does_not_wait_for_other_calls(open_model, photo, tmp_path):
    (tmp_path / "text.png").write_text("no photo")
    bad: list[tuple[Any, dict[str, Any]]] = [
        (photo, {"time_limit": "x"}),
        (photo, {"latents": np.zeros((1, 2, 3), np.float32)}),
        (tmp_path / "none.png", {}),
        (tmp_path / "text.png", {}),
        (b"no photo", {}),
        (np.zeros((8, 8, 3), np.uint8), {}),
    ]
    # A call that runs for as long as the test likes.
    with open_model._calls.turn(CancelToken()), ThreadPoolExecutor(1) as pool:
        for image, options in bad:
            with pytest.raises(UserError):
                pool.submit(open_model, image, "a cat", **options, **FAST).result(20)


def test_closing_from_several_threads_and_cancelling_meanwhile(demo_bundle, photo):
    model = ImageToVideo.from_bundle(demo_bundle, verify=False, device="cpu", threads=1)
    with ThreadPoolExecutor(4) as pool:
        with model._calls.turn(CancelToken()):
            closings = [pool.submit(model.close) for _ in range(4)]
            until(lambda: len(model._calls._turns) == 5)
            model.cancel()
        assert [closing.result(20) for closing in closings] == [None] * 4
    with pytest.raises(UserError, match="is closed"):
        model(photo, "a cat", **FAST)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_is_told_to_open_its_own(demo_bundle, photo):
    """Without the threads of the parent it would wait for ever, in a call or while it is closed."""
    threads = min(2, os.cpu_count() or 1)
    model = ImageToVideo.from_bundle(demo_bundle, verify=False, device="cpu", threads=threads)
    expected = model(photo, "a cat", **FAST).latents
    with model._calls.turn(CancelToken()):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                model(photo, "a cat", **FAST)
            except UserError as error:
                model.close()
                del model
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], 20)
    if not ready:
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with open(read, "rb") as said:  # noqa: PTH123 - a descriptor
        assert b"open the bundle in each process, after the fork" in said.read()
    assert np.array_equal(model(photo, "a cat", **FAST).latents, expected), "the parent's goes on"


@pytest.mark.slow
def test_asyncio_to_thread(open_model, photo):
    async def several() -> list[Any]:
        calls = (asyncio.to_thread(open_model, photo, "a cat", **{**FAST, "seed": seed}) for seed in range(4))
        return await asyncio.gather(*calls)

    for seed, result in enumerate(asyncio.run(several())):
        assert np.array_equal(result.latents, open_model(photo, "a cat", **{**FAST, "seed": seed}).latents)


def test_a_call_from_a_callback_is_refused_not_waited_for(open_model, photo):
    def nested(_: Any) -> None:
        open_model(photo, "a cat", **FAST)

    with pytest.raises(UserError, match="start it after the first call has returned, or on another thread"):
        open_model(photo, "a cat", callback=nested, **FAST)
    assert len(open_model(photo, "a cat", **FAST).frames) == 1


def test_turns_come_in_order_of_arrival():
    queue, order = CallQueue(), []

    def enter(number: int) -> None:
        with queue.turn(CancelToken()):
            order.append(number)

    with queue.turn(CancelToken()):
        threads = [threading.Thread(target=enter, args=(number,)) for number in range(50)]
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda number=number: len(queue._turns) == number + 2)
    for thread in threads:
        thread.join(20)
    assert order == list(range(50))


def test_a_failed_call_lets_the_next_one_in():
    queue = CallQueue()
    with pytest.raises(RuntimeError), queue.turn(CancelToken()):
        raise RuntimeError
    with queue.turn(CancelToken()):
        pass
    assert not queue._turns


def test_a_late_cancellation_does_not_touch_what_runs_next():
    token, heard = CancelToken(), []
    with token.listening(lambda: heard.append("first")):
        pass
    token.cancel()
    assert token.cancelled and not heard
    with pytest.raises(CancelledError, match="cancelled"), token.listening(lambda: heard.append("second")):
        pass
    assert not heard
