"""A whole generation on a GPU gives what the processor gives, whatever is asked for."""

from __future__ import annotations

import dataclasses
import gc
import logging
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from consisti2v_rt import ImageToVideo, UserError
from consisti2v_rt.errors import CancelledError
from consisti2v_rt.runtime import backends
from consisti2v_rt.runtime.bundle.stage_graphs import Availability
from consisti2v_rt.runtime.call_queue import CancelToken
from consisti2v_rt.runtime.gpu import entry, frame_init
from consisti2v_rt.runtime.gpu.options import GpuOptions

FAST = {"num_inference_steps": 2, "seed": 3, "guidance_scale_txt": 1.0}
CASES: dict[str, dict[str, Any]] = {
    "both_rescaled": {"guidance_scale_txt": 7.5, "guidance_scale_img": 1.5, "guidance_rescale": 0.7},
    "two_videos_eta": {"eta": 1.0, "num_inference_steps": 4, "num_videos_per_prompt": 2},
    "interval_two_state_solver": {
        "guidance_scale_txt": 7.5,
        "guidance_interval": (0.4, 1.0),
        "scheduler": "dpmpp_2m",
        "num_inference_steps": 3,
    },
    "overlapping_clips": {"autoregress_steps": 3, "chain": "overlap:3"},
    "two_clips_no_frameinit": {"autoregress_steps": 2, "use_frameinit": False},
}


@pytest.fixture(scope="module")
def on_processor(demo_bundle):
    return ImageToVideo.from_bundle(demo_bundle, verify=False, device="cpu")


@pytest.fixture
def on_gpu(fake_cuda, demo_bundle):
    return ImageToVideo.from_bundle(demo_bundle, verify=False, device="cuda")


@pytest.mark.parametrize("case", CASES)
def test_it_makes_the_processor_s_video(case, on_processor, on_gpu, photo, relative_l2):
    options = {**FAST, **CASES[case]}
    expected, result = on_processor(photo, "a cat", **options), on_gpu(photo, "a cat", **options)
    assert relative_l2(result.latents, expected.latents) < 2e-5
    assert result.frames.shape == expected.frames.shape and result.frames.dtype == np.uint8
    # Truncation to 8 bits turns a last-bit difference into one level now and then.
    assert np.abs(result.frames.astype(int) - expected.frames).max() <= 1
    assert set(on_gpu._executor.loop.graph_reasons.values()) == {""}, "the graph was not used"


def test_a_second_call_captures_nothing(on_gpu, fake_cuda, photo):
    first = on_gpu(photo, "a cat", **FAST)
    captures = fake_cuda.captures
    assert captures == 2, "the step and the decoder"
    decoder = on_gpu._executor.stages.sessions["vae_decoder"]
    decoder.enqueue = None  # every chunk is a replay
    again = on_gpu(photo, "a dog", **FAST)
    assert fake_cuda.captures == captures
    assert not np.array_equal(again.latents, first.latents), "the graph reads the new text"


def test_a_graph_is_checked_once_for_an_engine_and_shape(on_gpu, fake_cuda, photo):
    def step_launches(**options: Any) -> int:
        before = fake_cuda.launches.count("guided_step_f32")
        on_gpu(photo, "a cat", **{**FAST, **options})
        return fake_cuda.launches.count("guided_step_f32") - before

    assert step_launches() == 2, "once as it is, once captured"
    assert step_launches(num_inference_steps=3) == 1, "captured for the new tables, not checked again"
    assert step_launches(scheduler="dpmpp_2m") == 2, "another step"


def test_a_batch_for_the_prompt_alone_is_made_when_a_step_needs_it(fake_cuda, dynamic_bundle, photo, monkeypatch):
    animate = ImageToVideo.from_bundle(dynamic_bundle, verify=False, device="cuda")
    options = {**FAST, "guidance_scale_txt": 7.5}
    animate(photo, "a cat", **options)
    session = animate._executor.stages.sessions["unet"]
    made: list[dict[str, int]] = []
    with_dims = type(session).with_dims
    monkeypatch.setattr(type(session), "with_dims", lambda self, dims: made.append(dims) or with_dims(self, dims))
    animate(photo, "a cat", **options, num_videos_per_prompt=1)
    assert made == []
    animate(photo, "a cat", **{**options, "guidance_interval": (0.5, 1.0)})
    assert [dims["rows"] for dims in made] == [1]


def test_buffers_that_are_replaced_are_freed_at_once(on_gpu, photo):
    """Not by a garbage collection some time later: the new ones may need the room."""
    gc.disable()
    try:
        on_gpu(photo, "a cat", **FAST)
        work = weakref.ref(on_gpu._executor.loop._work.value)
        on_gpu(photo, "a cat", **{**FAST, "num_inference_steps": 3})
        assert work() is None
    finally:
        gc.enable()


def test_frames_are_handed_over_as_they_are_decoded(on_gpu, on_processor, photo):
    for animate in (on_gpu, on_processor):
        told: list[tuple[int, int, np.ndarray]] = []
        options = {**FAST, "num_inference_steps": 1, "autoregress_steps": 2}
        result = animate(photo, on_frames=lambda v, first, f, told=told: told.append((v, first, f.copy())), **options)
        assert [(video, first) for video, first, _ in told] == [(0, n) for n in range(result.frames.shape[1])]
        assert np.array_equal(np.concatenate([frames for _, _, frames in told]), result.frames[0])


def test_the_command_writes_videos_whose_clips_take_turns(fake_cuda, demo_bundle, photo, consisti2v, tmp_path):
    """Two videos of two clips: their frames come clip by clip, and each file is what the library saves."""
    output = tmp_path / "a.mp4"
    options = ["--steps", "2", "--seed", "3", "--guidance-scale", "1", "--clips", "2", "--videos-per-prompt", "2"]
    outcome = consisti2v(
        *("generate", "-b", demo_bundle, "-i", photo, "-p", "a cat", "-o", output, "--device", "cuda"),
        *("--no-verify", *options),
    )
    assert outcome.code == 0, outcome.stderr
    animate = ImageToVideo.from_bundle(demo_bundle, verify=False, device="cuda")
    animate(photo, "a cat", **FAST, autoregress_steps=2, num_videos_per_prompt=2).save(tmp_path / "b.mp4")
    for number in (0, 1):
        assert (tmp_path / f"a-{number}.mp4").read_bytes() == (tmp_path / f"b-{number}.mp4").read_bytes()


def test_a_decoder_s_graph_that_does_not_repeat_it_is_not_used(on_gpu, fake_cuda, photo, on_processor, caplog):
    """A capture that is silently empty, as of work on another stream."""
    with caplog.at_level(logging.WARNING, "consisti2v_rt"):
        decoder = on_gpu._executor.stages.session("vae_decoder", (1, 4, 16, 16, 16))
        enqueue = decoder.enqueue
        decoder.enqueue = lambda: None if fake_cuda.capturing else enqueue()
        result = on_gpu(photo, "a cat", **FAST)
    assert np.abs(result.frames.astype(int) - on_processor(photo, "a cat", **FAST).frames).max() <= 1
    (told,) = (record.message for record in caplog.records if "decoder runs without a CUDA graph" in record.message)
    assert "image was not written" in told


def test_without_a_graph(fake_cuda, demo_bundle, photo, on_processor, relative_l2):
    animate = ImageToVideo.from_bundle(demo_bundle, verify=False, device="cuda", gpu=GpuOptions(cuda_graph=False))
    result = animate(photo, "a cat", **FAST)
    assert fake_cuda.captures == 0 and set(animate._executor.loop.graph_reasons.values()) == {"switched off"}
    assert relative_l2(result.latents, on_processor(photo, "a cat", **FAST).latents) < 2e-5


def test_progress_tells_every_step_with_its_latents(on_gpu, on_processor, photo):
    told: dict[str, list[tuple[int, int, np.ndarray]]] = {"cpu": [], "gpu": []}
    options = {**FAST, "num_inference_steps": 4}
    for name, animate in (("cpu", on_processor), ("gpu", on_gpu)):
        steps = told[name]
        animate(photo, callback=lambda p, steps=steps: steps.append((p.step, p.timestep, p.latents.copy())), **options)
    assert [step[:2] for step in told["gpu"]] == [step[:2] for step in told["cpu"]]
    for (_, _, result), (_, _, expected) in zip(told["gpu"], told["cpu"], strict=True):
        np.testing.assert_allclose(result, expected, atol=2e-4)


def test_cancel_between_steps(on_gpu, photo):
    steps: list[int] = []

    def stop(progress: Any) -> None:
        steps.append(progress.step)
        on_gpu.cancel()

    with pytest.raises(CancelledError):
        on_gpu(photo, "a cat", callback=stop, **{**FAST, "num_inference_steps": 20})
    assert len(steps) < 5
    assert len(on_gpu(photo, "a cat", **FAST).frames) == 1, "the next call is a call again"


def test_frames_of_a_cancelled_clip_are_not_in_the_next_video(on_gpu, photo):
    clips: list[int] = []

    def stop_in_the_second(progress: Any) -> None:
        clips.append(progress.clip)
        if progress.clip == 1:
            on_gpu.cancel()

    with pytest.raises(CancelledError):
        on_gpu(photo, "a cat", callback=stop_in_the_second, **FAST, autoregress_steps=2)
    assert 1 in clips
    assert on_gpu(photo, "a cat", **FAST).frames.shape[1] == 16


def test_nothing_is_under_way_behind_a_failed_writer(on_gpu, fake_cuda, photo):
    """Its buffers go back to the GPU: nothing may still read or write them."""

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        on_gpu(photo, "a cat", on_frames=full, **FAST)
    assert fake_cuda.is_idle()
    assert len(on_gpu(photo, "a cat", **FAST).frames) == 1


def test_low_vram_keeps_one_stage_s_weights(fake_cuda, demo_bundle, photo, on_processor, relative_l2):
    animate = ImageToVideo.from_bundle(demo_bundle, verify=False, device="cuda", gpu=GpuOptions(low_vram=True))
    result = animate(photo, "a cat", **FAST)
    assert all(
        session.releases
        for session in animate._executor.stages.sessions.values()
        if session is not animate._executor.stages.sessions["vae_decoder"]
    )
    assert relative_l2(result.latents, on_processor(photo, "a cat", **FAST).latents) < 2e-5
    # The weights come back elsewhere: the old graphs must not be replayed.
    captures = fake_cuda.captures
    animate(photo, "a cat", **FAST)
    assert fake_cuda.captures == captures + 2


def test_close_frees_the_weights(fake_cuda, demo_bundle, photo):
    animate = ImageToVideo.from_bundle(demo_bundle, verify=False, device="cuda")
    animate(photo, "a cat", **FAST)
    sessions = list(animate._executor.stages.sessions.values())
    animate.close()
    assert [session.releases for session in sessions] == [1] * len(sessions)
    kept = [weakref.ref(session) for session in sessions]
    del sessions
    gc.collect()
    assert [session() for session in kept] == [None] * len(kept), "the process' turns keep none of them"


def test_frame_init_on_the_processor_where_there_is_no_cufft(on_gpu, on_processor, photo, monkeypatch, relative_l2):
    def missing(*_: Any) -> None:
        raise RuntimeError("cuFFT is not installed")

    monkeypatch.setattr(frame_init, "RealTransform", missing)
    result = on_gpu(photo, "a cat", **FAST)
    assert relative_l2(result.latents, on_processor(photo, "a cat", **FAST).latents) < 2e-5


def test_device_noise(fake_cuda, demo_bundle, photo, on_processor):
    gpu = GpuOptions(device_noise=True)
    animate = ImageToVideo.from_bundle(demo_bundle, verify=False, device="cuda", gpu=gpu)
    options = {**FAST, "eta": 1.0, "num_inference_steps": 1}
    one, again, other = (animate(photo, "a cat", **{**options, "seed": seed}).latents for seed in (3, 3, 4))
    assert np.array_equal(one, again) and not np.allclose(one, other)
    assert not np.allclose(one, on_processor(photo, "a cat", **options).latents)
    assert "philox_normal" in fake_cuda.launches and "mix_noise_pyoco_mixed" in fake_cuda.launches


def test_device_noise_needs_a_gpu(demo_bundle):
    with pytest.raises(
        UserError, match="low_vram, cuda_graph need a GPU, which device openvino is not: leave them out"
    ):
        ImageToVideo.from_bundle(demo_bundle, device="openvino", gpu=GpuOptions(low_vram=False, cuda_graph=False))
    with pytest.raises(UserError, match="device_noise needs a GPU"):
        ImageToVideo.from_bundle(demo_bundle, verify=False, device="cpu", gpu=GpuOptions(device_noise=True))


def test_too_little_memory_is_refused_before_anything_is_loaded(on_gpu, fake_cuda, photo, monkeypatch):
    monkeypatch.setattr(fake_cuda, "free_and_total", lambda: (1 << 20, 8 << 30))
    with pytest.raises(UserError, match="even with --low-vram"):
        on_gpu(photo, "a cat", **FAST)
    assert not on_gpu._executor.stages.sessions


def test_decoding_follows_the_size(fake_cuda, dynamic_bundle, photo, relative_l2):
    animate = ImageToVideo.from_bundle(dynamic_bundle, verify=False, device="cuda")
    exact = ImageToVideo.from_bundle(dynamic_bundle, verify=False, device="cpu")
    for height, width in ((64, 64), (48, 80), (64, 64)):
        options = {**FAST, "height": height, "width": width, "autoregress_steps": 2}
        result, expected = (each(photo, "a cat", **options) for each in (animate, exact))
        assert result.frames.shape == expected.frames.shape == (1, 31, height, width, 3)
        assert relative_l2(result.latents, expected.latents) < 2e-5
        assert np.abs(result.frames.astype(int) - expected.frames).max() <= 1


def test_four_frames_are_decoded_at_once_where_memory_allows_it(fake_cuda, dynamic_bundle, photo, monkeypatch):
    """The last run of a video has what is left; a fixed batch of one is what earlier bundles have."""
    options = {**FAST, "autoregress_steps": 2, "num_videos_per_prompt": 2}

    def shown(free: int) -> tuple[Any, list[tuple[int, int, int]], Any]:
        monkeypatch.setattr(fake_cuda, "free_and_total", lambda: (free, 8 << 30))
        animate = ImageToVideo.from_bundle(dynamic_bundle, verify=False, device="cuda")
        told: list[tuple[int, int, int]] = []
        made = animate(photo, "a cat", on_frames=lambda v, first, f: told.append((v, first, len(f))), **options)
        return made, told, animate._executor

    whole, told, executor = shown(8 << 30)
    assert told == [(video, first, min(4, 31 - first)) for video in (0, 1) for first in range(0, 31, 4)]
    plan = executor.memory_report()["plan"]
    narrow, told, executor = shown(plan["needed"] + (1 << 20))
    assert executor.stages.frames_at_once == 1 and not executor.memory_report()["plan"]["low_vram"]
    assert told == [(video, first, 1) for video in (0, 1) for first in range(31)]
    expected = ImageToVideo.from_bundle(dynamic_bundle, verify=False, device="cpu")(photo, "a cat", **options)
    for made in (whole, narrow):
        assert np.abs(made.frames.astype(int) - expected.frames).max() <= 1


def test_a_decoder_whose_buffers_moved_is_captured_anew(fake_cuda, dynamic_bundle, photo):
    """A call of another size makes the decoder's buffers anew, and is cancelled before it decodes."""
    animate = ImageToVideo.from_bundle(dynamic_bundle, verify=False, device="cuda")
    wide, token = {**FAST, "height": 48, "width": 80}, CancelToken()
    expected = animate(photo, "a cat", **wide)
    with pytest.raises(CancelledError):
        animate(photo, "a cat", cancel_token=token, callback=lambda _: token.cancel(), **FAST)
    assert np.array_equal(animate(photo, "a cat", **wide).frames, expected.frames)


@pytest.mark.parametrize("models", [1, 2])
def test_threads_get_the_videos_of_one_thread(fake_cuda, dynamic_bundle, photo, models):
    """Eight threads, mixed sizes and guidance, a cancelled call in the middle; two objects share the one GPU."""
    loaded = [ImageToVideo.from_bundle(dynamic_bundle, verify=False, device="cuda") for _ in range(models)]
    calls = [
        {**FAST, "seed": seed, "height": height, "width": width, "guidance_scale_txt": guidance}
        for seed, (height, width) in enumerate([(64, 64), (48, 80)])
        for guidance in (1.0, 7.5)
    ]
    expected = [loaded[0](photo, "a cat", **options) for options in calls]
    token = CancelToken()

    def cancelled() -> None:
        options = {**FAST, "num_inference_steps": 20}
        with pytest.raises(CancelledError):
            loaded[0](photo, "a dog", cancel_token=token, callback=lambda _: token.cancel(), **options)

    with ThreadPoolExecutor(8) as pool:
        first = [pool.submit(loaded[i % models], photo, "a cat", **options) for i, options in enumerate(calls)]
        stopped = pool.submit(cancelled)
        second = [pool.submit(loaded[-1], photo, "a cat", **options) for options in calls]
        stopped.result()
        for futures in (first, second):
            for future, serial in zip(futures, expected, strict=True):
                assert np.array_equal(future.result().frames, serial.frames)
                assert np.array_equal(future.result().latents, serial.latents)


@pytest.mark.parametrize(("name", "runs_over"), [("demo_bundle", (5, 6, 12)), ("dynamic_bundle", (1, 4))])
def test_frames_that_overflow_on_the_gpu_are_decoded_again_in_float32(
    fake_cuda, push_work, device_view, request, name, runs_over, photo, monkeypatch, caplog
):
    """Some chunks, of one frame or of four, are not finite; all frames are the float32 ones, in order."""
    # The stand-in runs the float32 graphs whatever the precision is called.
    processor = next(backend for backend in backends.BACKENDS if backend.name == "onnxruntime-cpu")
    stand_in = next(backend for backend in backends.BACKENDS if backend.device == "cuda")
    load = stand_in.load

    def load_half(bundle: Any, stage: str, dims: Any, threads: int | None, precision: str) -> Any:
        if precision == "fp32":
            raise UserError("there is no float32 engine.")
        session = load(bundle, stage, dims, threads, "fp32")
        if stage == "vae_decoder":
            enqueue, runs = session.enqueue, iter(range(1000))

            def spoil() -> None:
                # Counted as they run: once in a capture, and again in every replay.
                if next(runs) in runs_over:
                    device_view(session.device_outputs["image"]).fill(np.nan)

            def overflow() -> None:
                enqueue()
                push_work(fake_cuda.stream, spoil)

            session.enqueue = overflow
        return session

    half = dataclasses.replace(
        stand_in, precisions=("fp16",), load=load_half, fits=lambda *_: Availability(True, "stand-in")
    )
    monkeypatch.setattr(backends, "BACKENDS", (half, processor))
    monkeypatch.setattr(entry, "stage_graph", lambda bundle, stage, _: bundle.manifest.stages[stage])
    bundle = request.getfixturevalue(name)
    animate = ImageToVideo.from_bundle(bundle, verify=False, device="cuda")
    shown: list[np.ndarray] = []
    with caplog.at_level(logging.WARNING, "consisti2v_rt"):
        result = animate(photo, "a cat", on_frames=lambda v, first, frames: shown.append(frames.copy()), **FAST)
        again = animate(photo, "a cat", **FAST)
    assert {len(frames) for frames in shown} == ({1} if name == "demo_bundle" else {4})
    expected = ImageToVideo.from_bundle(bundle, verify=False, device="cpu")(photo, "a cat", **FAST)
    for made in (result.frames, np.concatenate(shown)[None], again.frames):
        assert made.shape == expected.frames.shape
        assert np.abs(made.astype(int) - expected.frames).max() <= 1
    notices = [record.message for record in caplog.records if "not finite" in record.message]
    assert len(notices) == 1 and "stage vae_decoder" in notices[0] and "fp32 on ONNX Runtime CPU" in notices[0]
