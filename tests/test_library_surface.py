"""The library as people meet it: names, types of arguments, aliases, results, stopping and closing."""

from __future__ import annotations

import copy
import dataclasses
import gc
import inspect
import io
import pickle
import pydoc
import subprocess
import sys
import threading
import types
import typing
import weakref
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import consisti2v_rt
from consisti2v_rt import (
    Bundle,
    CancelledError,
    GenerationSettings,
    GpuOptions,
    ImageToVideo,
    StepProgress,
    UserError,
)
from consisti2v_rt.runtime.request.option_table import ALIASES, OPTIONS
from consisti2v_rt.runtime.request.options import GenerationOptions, OtherNames

FAST = {"num_inference_steps": 2, "guidance_scale_txt": 1.0, "seed": 3}
PUBLIC = {
    "Bundle",
    "CancelToken",
    "CancelledError",
    "GeneratedVideos",
    "GenerationSettings",
    "GpuOptions",
    "ImageToVideo",
    "StepProgress",
    "UserError",
}


@pytest.fixture(scope="module")
def animate(demo_bundle) -> ImageToVideo:
    return ImageToVideo.from_bundle(demo_bundle)


@pytest.fixture(scope="module")
def videos(animate, photo):
    return animate(photo, ["a cat", "a dog"], **FAST)


# -- names ---------------------------------------------------------------------------------------------------------


def test_dir_and_help_show_the_public_names():
    assert set(dir(consisti2v_rt)) == {*PUBLIC, "__version__"}
    shown = pydoc.plain(pydoc.render_doc(consisti2v_rt))
    assert all(f"class {name}" in shown for name in PUBLIC)
    with pytest.raises(AttributeError, match="no attribute 'ImageToVideos'"):
        consisti2v_rt.ImageToVideos  # noqa: B018


def test_importing_the_package_loads_nothing_else():
    """Neither do ``dir`` and the version."""
    code = (
        "import consisti2v_rt as p, sys; dir(p), p.__version__; "
        "print([m for m in sys.modules if m.startswith('consisti2v_rt.')], 'numpy' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[] False"


def test_typed_options_are_the_settings():
    """A list may stand for a tuple of any length; everything else has the field's own type."""

    def accepted(hint: object) -> object:
        parts = typing.get_args(hint)
        if typing.get_origin(hint) is tuple and parts[-1] is Ellipsis:
            return Sequence[parts[0]]
        if typing.get_origin(hint) in (typing.Union, types.UnionType):
            return typing.Union[tuple(map(accepted, parts))]  # noqa: UP007
        return hint

    settings = typing.get_type_hints(GenerationSettings)
    options = typing.get_type_hints(GenerationOptions)
    other = typing.get_type_hints(OtherNames)
    assert set(settings) == {field.name for field in dataclasses.fields(GenerationSettings)}
    assert {name: accepted(hint) for name, hint in settings.items()} == {
        name: hint for name, hint in options.items() if name not in other
    }
    assert set(other) == set(ALIASES)
    for name, hint in other.items():
        assert hint == (typing.Any if name == "generator" else settings[ALIASES[name]]), name
    for method in (ImageToVideo.__call__, ImageToVideo.check):
        assert inspect.signature(method).parameters["options"].annotation == "Unpack[GenerationOptions]"


# -- other names -------------------------------------------------------------------------------------------------------


def test_other_names_are_of_settings_and_of_one_only():
    fields = {field.name for field in dataclasses.fields(GenerationSettings)}
    assert set(OPTIONS) == fields and not set(ALIASES) & fields
    assert len(ALIASES) == sum(len({*option.names} - {name}) for name, option in OPTIONS.items())


@pytest.mark.parametrize("name", sorted(set(ALIASES) - {"generator"}))
def test_an_other_name_sets_the_setting(name):
    assert GenerationSettings.from_options({name: 5}) == GenerationSettings.from_options({ALIASES[name]: 5})
    with pytest.raises(UserError, match=f"{ALIASES[name]} and {name} are two names of one option: give one"):
        GenerationSettings.from_options({ALIASES[name]: 5, name: 5})


def test_two_other_names_of_one_option_are_refused():
    with pytest.raises(UserError, match="frames and num_frames are two names"):
        GenerationSettings.from_options({"frames": 16, "num_frames": 16})


def test_an_other_name_wins_over_a_preset():
    assert GenerationSettings.from_options({"preset": "balanced", "steps": 3}).num_inference_steps == 3


@pytest.mark.slow
def test_the_words_of_diffusers_make_the_same_video(animate, photo):
    model = animate.bundle.manifest.model
    words = {"num_frames": model.frames, "guidance_scale": 1.0, "num_images_per_prompt": 1, "negative_prompt": None}
    generator = types.SimpleNamespace(initial_seed=lambda: 3)
    one = animate(photo, "a cat", num_inference_steps=2, generator=generator, **words)
    assert np.array_equal(one.latents, animate(photo, "a cat", **FAST).latents)


def test_a_torch_generator_is_its_seed():
    torch = pytest.importorskip("torch")
    generators = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    assert GenerationSettings.from_options({"generator": generators[0]}).seed == 5
    assert GenerationSettings.from_options({"generator": generators}).seed == (5, 6)
    assert GenerationSettings.from_options({"generator": None}).seed is None


@pytest.mark.parametrize("generator", [7, "x", np.random.default_rng(0)], ids=["int", "str", "numpy"])
def test_another_generator_is_refused(generator):
    with pytest.raises(UserError, match=r"generator must be a torch.Generator .*: pass a number as seed=7\.$"):
        GenerationSettings.from_options({"generator": generator})


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("num_frame", "num_frames"), ("guidance_scales", "guidance_scale"), ("num_inference_step", "num_inference_steps")],
)
def test_suggestions_know_the_other_names(typed, meant):
    with pytest.raises(UserError, match=f"did you mean {meant}"):
        GenerationSettings.from_options({typed: 1})


@pytest.mark.slow
def test_the_command_takes_other_names(consisti2v, demo_bundle, photo, tmp_path):
    common = ["generate", "--bundle", demo_bundle, "--image", photo, "--seed", "1", "--output"]
    own = consisti2v(*common, tmp_path / "own.png", "--steps", "2", "--guidance-scale", "1", "--no-frameinit")
    other = ["--num-inference-steps=2", "--guidance_scale_txt", "1", "--no-use-frameinit"]
    model = Bundle.open(demo_bundle).manifest.model
    other += ["--num-frames", str(model.frames), "--num-videos-per-prompt", "1"]
    outcome = consisti2v(*common, tmp_path / "other.png", *other)
    assert (own.code, outcome.code) == (0, 0), own.stderr + outcome.stderr
    for index in range(model.frames):
        names = (f"{name}-{index:03d}.png" for name in ("own", "other"))
        one, two = (np.asarray(Image.open(tmp_path / name)) for name in names)
        assert np.array_equal(one, two)


def test_the_command_refuses_two_names_of_one_option(consisti2v, demo_bundle, photo):
    common = ["generate", "--bundle", demo_bundle, "--image", photo]
    outcome = consisti2v(*common, "--steps", "2", "--num-inference-steps", "3")
    assert outcome.refusal() == "--steps and --num-inference-steps are two names of one option: give one of them."
    outcome = consisti2v(*common, "--num-frame", "3")
    assert outcome.code == 2 and "--frames" in outcome.stderr
    outcome = consisti2v("generate", "--help")
    assert "--num-frames" not in outcome.stdout


def test_a_refusal_in_the_command_has_the_commands_names(consisti2v, demo_bundle, photo):
    outcome = consisti2v("generate", "--bundle", demo_bundle, "--image", photo, "--num-images-per-prompt", "0")
    assert outcome.refusal().startswith("--videos-per-prompt 0 is not possible")


# -- wrong types -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompt": None}, 'prompt must be a text, or a list of texts, not None: pass "" for no prompt.'),
        ({"prompt": 3}, 'prompt must be a text, or a list of texts, not 3: pass "" for no prompt.'),
        ({"prompt": ["a", b"b"]}, "prompt must be a text, or a list of texts, not a bytes"),
        ({"prompt": {"a": 1}}, "prompt must be a text, or a list of texts, not a dict"),
        ({"negative_prompt": 3}, "negative_prompt must be a text, or a list of texts, not 3."),
        ({"image": None}, "or a list of them, not None."),
        ({"image": [None]}, "or a list of them, not None."),
        ({"image": 3.5}, "or a list of them, not 3.5."),
        ({"image": types.SimpleNamespace(detach=1)}, "not a SimpleNamespace (pass image.numpy(), uint8"),
        ({"settings": {}}, "settings must be a GenerationSettings, not a dict: pass its items as options"),
        ({"settings": 8}, "settings must be a GenerationSettings, not 8."),
        ({"latents": [[1.0]]}, "latents must be a NumPy array of floats, not a list: pass np.asarray(latents"),
        ({"latents": np.zeros(3, np.int64)}, "latents must be a NumPy array of floats, not an array of int64"),
        ({"latents": np.zeros(3, np.complex64)}, "latents must be a NumPy array of floats, not an array of complex64"),
        ({"latents": types.SimpleNamespace(detach=1)}, "pass latents.cpu().numpy()."),
        ({"latents": np.zeros(3)}, "latents must be finite numbers of shape"),
        ({"callback": 3}, "callback must be a function, not 3."),
        ({"on_frames": "x"}, "on_frames must be a function, not a str."),
        ({"cancel_token": True}, "cancel_token must be a CancelToken, not True."),
    ],
    ids=str,
)
def test_a_call_refuses_wrong_types(animate, photo, arguments, sentence):
    with pytest.raises(UserError) as refusal:
        animate(**{"image": photo, "prompt": "a cat"} | arguments)
    assert sentence in str(refusal.value) and str(refusal.value).endswith(".")


def test_the_constructor_refuses_wrong_types(animate):
    bundle = animate.bundle
    path = str(bundle.path)
    for call, sentence in (
        (lambda: ImageToVideo("model"), "use ImageToVideo.from_bundle('model')."),
        (lambda: ImageToVideo(Path("model")), "use ImageToVideo.from_bundle('model')."),
        (lambda: ImageToVideo(None), "ImageToVideo takes an open Bundle, not None"),
        (lambda: ImageToVideo.from_bundle(bundle), "pass an open Bundle to ImageToVideo(bundle)."),
        (lambda: ImageToVideo.from_bundle(None), "as a str or a Path, not None."),
        (lambda: ImageToVideo(bundle, threads="2"), "threads '2' is not possible"),
        (lambda: ImageToVideo(bundle, threads=True), "threads True is not possible"),
        (lambda: ImageToVideo.from_bundle(path, threads=0), "threads 0 is not possible"),
        (lambda: ImageToVideo(bundle, gpu={}), "gpu must be a GpuOptions, as GpuOptions(low_vram=True), not a dict."),
        (lambda: ImageToVideo(bundle, device=None), "device None is unknown: choose auto"),
        (lambda: ImageToVideo(bundle, precision=16), "precision 16 is unknown: choose fp32"),
    ):
        with pytest.raises(UserError) as refusal:
            call()
        assert sentence in str(refusal.value)
    assert ImageToVideo(bundle, gpu=GpuOptions()).backend.backend.device == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_latents_of_another_float_type_are_used_as_float32(animate, photo, videos, dtype):
    noise = np.random.default_rng(0).standard_normal(videos.latents[:1].shape).astype(np.float16)
    given = [animate(photo, "a cat", latents=noise.astype(kind), **FAST).latents for kind in (np.float32, dtype)]
    assert np.array_equal(*given)


def test_latents_beyond_float32_are_refused(animate, photo, videos):
    with pytest.raises(UserError, match="latents must be finite"):
        animate(photo, "a cat", latents=np.full(videos.latents[:1].shape, 1e300), **FAST)


HUGE = 10**6000
LARGE = 10**400


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": LARGE},
        {"eta": LARGE},
        {"fps": LARGE},
        {"steps": HUGE},
        {"seed": HUGE},
        {"seed": True},
        {"use_frameinit": HUGE},
        {"video_length": "16"},
        {"fit": np.array(["crop", "pad"])},
        {"camera_motion": np.array(["a", "b"])},
        {"guidance_interval": (Fraction(1, 2), Fraction(1, 4))},
        {"guidance_interval": np.array([0.2, 0.8])},
    ],
    ids=lambda options: next(iter(options)),
)
def test_values_of_any_type_and_size_are_refused_in_a_sentence(animate, photo, options):
    with pytest.raises(UserError) as refusal:
        animate.check(photo, "a cat", **options)
    assert len(str(refusal.value)) < 300


def test_numbers_of_other_libraries_become_pythons_own(animate, photo):
    given = {
        "steps": np.int64(2),
        "fps": np.float32(12.5),
        "guidance_scale": Fraction(1, 1),
        "guidance_interval": [Fraction(1, 4), np.float64(0.75)],
        "seed": [np.int64(7)],
    }
    settings = animate.check(photo, "a cat", **given).settings
    values = (settings.num_inference_steps, settings.fps, settings.guidance_scale_txt, *settings.guidance_interval)
    assert [(type(value), value) for value in (*values, *settings.seed)] == [
        (int, 2),
        (float, 12.5),
        (float, 1.0),
        (float, 0.25),
        (float, 0.75),
        (int, 7),
    ]


def test_lists_in_a_settings_object_are_as_good_as_tuples(animate, photo):
    settings = GenerationSettings(negative_prompt=["x", "y"], seed=[1, 2], guidance_interval=[0, 1])
    request = animate.check(photo, ["a", "b"], settings=settings)
    assert request.negatives == ["x", "y"] and request.settings.seed == (1, 2)


def test_a_time_limit_of_any_number_type_is_kept(animate, photo):
    for limit in (np.float32(0.125), Fraction(1, 8)):
        with pytest.raises(UserError, match=r"time limit of 0\.125 s was reached"):
            animate(photo, "a cat", time_limit=limit, **FAST | {"num_inference_steps": 50})


def test_async_callbacks_are_refused(animate, photo):
    async def callback(*_: object) -> bool:
        return False

    for name in ("callback", "on_frames"):
        with pytest.raises(UserError, match=f"{name} must be an ordinary function"):
            animate(photo, "a cat", **{name: callback}, **FAST)


def test_flags_are_flags(demo_bundle):
    with pytest.raises(UserError, match="verify None is not possible: give True or False"):
        ImageToVideo.from_bundle(demo_bundle, verify=None)
    with pytest.raises(UserError, match="low_vram 'yes' is not possible: give True or False"):
        ImageToVideo.from_bundle(demo_bundle, gpu=GpuOptions(low_vram="yes"))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_belongs_to_a_process_is_not_copied(animate, duplicate):
    for one in (animate, animate.bundle, consisti2v_rt.CancelToken()):
        with pytest.raises(UserError, match=f"{type(one).__name__} can be neither copied nor pickled: "):
            duplicate(one)


# -- results -----------------------------------------------------------------------------------------------------------


def test_the_result_is_shown_in_short(videos):
    _, frames, height, width, _ = videos.frames.shape
    assert repr(videos).startswith(f"<GeneratedVideos: 2 videos of {frames} frames {width}x{height}, seed 3, ")
    assert len(repr(videos)) < 100


def test_results_compare_by_identity(videos):
    twin = dataclasses.replace(videos)
    assert videos == videos and videos != twin and len({videos, twin}) == 2


def test_the_result_is_a_sequence_of_videos(videos):
    assert len(videos) == 2 and np.array_equal(np.stack(list(videos)), videos.frames)
    assert np.array_equal(videos[-1], videos.frames[1])


def test_to_pil(videos):
    pictures = videos.to_pil()
    assert [len(video) for video in pictures] == [videos.frames.shape[1]] * 2
    assert pictures[1][2].mode == "RGB" and np.array_equal(np.asarray(pictures[1][2]), videos.frames[1, 2])


@pytest.mark.parametrize("fps", [0, -1, float("nan"), "8"])
def test_save_refuses_frames_a_second(videos, tmp_path, fps):
    with pytest.raises(UserError, match=r"fps .* is not possible"):
        videos.save(tmp_path / "out.gif", fps=fps)
    assert not list(tmp_path.iterdir())


def test_save_takes_numbers_of_other_libraries(videos, tmp_path):
    assert len(videos.save(tmp_path / "out.mp4", fps=np.float32(12), scale=np.float32(2))) == 2


@pytest.mark.parametrize("path", [None, 5, b"out.mp4", io.BytesIO(), ["out.mp4"]])
def test_save_refuses_what_is_no_path(videos, path):
    with pytest.raises(UserError, match=r"an output is a path such as out\.mp4, as a str or a Path, not "):
        videos.save(path)


def test_save_puts_all_videos_in_place_or_none(videos, tmp_path):
    (tmp_path / "out-1.gif").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        videos.save(tmp_path / "out.gif")
    assert [file.name for file in tmp_path.iterdir()] == ["out-1.gif"]


def test_results_are_pickled_and_copied(videos):
    for twin in (pickle.loads(pickle.dumps(videos)), copy.deepcopy(videos)):
        assert np.array_equal(twin.frames, videos.frames) and twin.settings == videos.settings


# -- stopping and closing ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_callback_that_returns_false_stops_the_call(animate, photo):
    seen: list[StepProgress] = []

    def stop(state: StepProgress) -> bool:
        seen.append(state)
        return (state.clip, state.step) != (1, 0)

    with pytest.raises(CancelledError, match="the callback stopped the call after step 1 of 2 of clip 2 of 2"):
        animate(photo, "a cat", clips=2, callback=stop, **FAST)
    assert len(seen) == 3
    with pytest.raises(CancelledError, match="after step 1 of 2"):
        animate(photo, "a cat", callback=lambda state: np.bool_(False), **FAST)
    assert repr(seen[0]) == "StepProgress(clip=0, clips=2, step=0, steps=2, timestep=501)"
    again = animate(photo, "a cat", callback=lambda state: 0, **FAST)
    assert np.isfinite(again.latents).all(), "only False stops, and the object works on"


def test_a_cancelled_call_says_so():
    assert str(CancelledError()) == "the call was cancelled"


@pytest.mark.slow
def test_a_with_block_closes(demo_bundle, photo):
    with ImageToVideo.from_bundle(demo_bundle, verify=False) as animate:
        animate(photo, "a cat", **FAST)
        sessions = [weakref.ref(session) for session in animate._executor.stages.sessions.values()]
        assert len(sessions) == 5
    gc.collect()
    assert [session() for session in sessions] == [None] * 5
    animate.close()
    animate.cancel()
    with pytest.raises(UserError, match=r"this ImageToVideo is closed: open the bundle again with .*from_bundle"):
        animate(photo, "a cat", **FAST)
    with pytest.raises(UserError, match="is closed"), animate:
        pass


@pytest.mark.slow
def test_close_ends_the_running_call_and_those_that_wait(demo_bundle, photo):
    animate = ImageToVideo.from_bundle(demo_bundle, verify=False)
    running, ends = threading.Event(), []

    def call(callback) -> None:
        try:
            animate(photo, "a cat", callback=callback, **{**FAST, "num_inference_steps": 500})
        except Exception as error:
            ends.append(error)

    threads = [threading.Thread(target=call, args=(lambda state: running.set(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert running.wait(60)
    animate.close()
    assert not hasattr(animate, "_executor"), "the running call has ended before close returns"
    for thread in threads:
        thread.join(60)
    # A call that had not even arrived is refused.
    assert len(ends) == 3 and all(isinstance(e, CancelledError) or "is closed" in str(e) for e in ends), ends
    assert any(isinstance(e, CancelledError) for e in ends)


@pytest.mark.slow
def test_close_in_a_callback_is_refused(animate, photo):
    with pytest.raises(UserError, match="close was called from a callback of a running call: return False there"):
        animate(photo, "a cat", callback=lambda state: animate.close(), **FAST)
    assert np.isfinite(animate(photo, "a cat", **FAST).latents).all()


def test_the_default_number_of_threads_is_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    from consisti2v_rt.runtime.session import THREADS_VARIABLE, default_threads

    monkeypatch.delenv(THREADS_VARIABLE, raising=False)
    assert default_threads() is None
    monkeypatch.setenv(THREADS_VARIABLE, "3")
    assert default_threads() == 3
    for wrong in ("0", "-1", "two", "1e9", "99999"):
        monkeypatch.setenv(THREADS_VARIABLE, wrong)
        with pytest.raises(UserError, match="whole number from 1 on"):
            default_threads()
