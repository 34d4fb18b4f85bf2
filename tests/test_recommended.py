"""What a bundle recommends: the defaults of a call, the checks at opening, and the notices of what it does not know."""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt import GenerationSettings, ImageToVideo, UserError
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.manifest import Manifest, RecommendedSettings
from consisti2v_rt.runtime.bundle.recommended import notices, recommended_settings
from consisti2v_rt.runtime.request.option_table import CAMERA_MOTIONS
from consisti2v_rt.runtime.request.presets import PUBLISHED
from consisti2v_rt.runtime.request.settings import ResolvedSettings

ROOT = Path(__file__).parents[1]
DISTILLED: dict[str, Any] = {
    "guidance_scale_txt": 1.0,
    "guidance_scale_img": 2.0,
    "guidance_rescale": 0.5,
    "guidance_interval": (0.2, 0.8),
    "num_inference_steps": 8,
    "scheduler": "lcm",
    "frame_stride": 5,
}


@pytest.fixture
def demo_manifest(demo_bundle) -> Manifest:
    return Bundle.open(demo_bundle, verify=False).manifest


@pytest.fixture
def distilled(demo_manifest) -> Manifest:
    """The demo bundle's manifest with every setting recommended, none as published."""
    return dataclasses.replace(demo_manifest, recommended=RecommendedSettings(**DISTILLED))


def recommend(bundle: Path, folder: Path, recommended: Any) -> Path:
    """A copy of a bundle with another entry; None: without one, as it was written before there was any."""
    shutil.copytree(bundle, folder)
    data = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    data["recommended"] = recommended
    if recommended is None:
        del data["recommended"]
    (folder / "bundle.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def chosen(settings: GenerationSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in PUBLISHED}


def test_every_published_value_can_be_recommended_and_left_open():
    recommendable = [f.name for f in dataclasses.fields(RecommendedSettings)]
    assert recommendable == [*PUBLISHED, "known_prompts", "camera_motions"]
    assert DISTILLED.keys() == PUBLISHED.keys()
    assert not [name for name in PUBLISHED if DISTILLED[name] == PUBLISHED[name]]
    assert set(chosen(GenerationSettings()).values()) == {None}


def test_option_then_preset_then_recommendation_then_published(demo_manifest, distilled):
    plain = dataclasses.replace(demo_manifest, recommended=RecommendedSettings())
    assert chosen(GenerationSettings().resolved(plain)) == PUBLISHED
    assert chosen(GenerationSettings().resolved(distilled)) == DISTILLED
    exact = GenerationSettings.from_options({"preset": "exact"}).resolved(distilled)
    published = {name: PUBLISHED[name] for name in ("scheduler", "num_inference_steps", "guidance_interval")}
    assert chosen(exact) == DISTILLED | published, "how far guidance goes stays the model's own"
    asked = GenerationSettings.from_options({"preset": "exact", "num_inference_steps": 9, "guidance_scale_txt": 3})
    assert chosen(asked.resolved(distilled)) == DISTILLED | published | {
        "num_inference_steps": 9,
        "guidance_scale_txt": 3,
    }
    for name, value in PUBLISHED.items():
        options = {name: value, "num_inference_steps": 50} if name == "scheduler" else {name: value}
        assert getattr(GenerationSettings.from_options(options).resolved(distilled), name) == value, (
            "0 and 1 are values"
        )


def test_settings_of_a_result_can_be_used_again(demo_manifest, distilled):
    once = GenerationSettings(seed=3).resolved(distilled)
    assert isinstance(once, ResolvedSettings) and once.guidance == "both" and list(once.guided_steps) == [2, 3, 4, 5]
    assert once.resolved(demo_manifest) == once
    assert GenerationSettings.from_options({"frame_stride": None}, once).resolved(demo_manifest).frame_stride == 3


@pytest.mark.slow
def test_the_library_follows_the_bundle(demo_bundle, photo, tmp_path):
    animate = ImageToVideo.from_bundle(demo_bundle, device="cpu")
    videos = animate(photo, "zoom in", seed=1, num_inference_steps=1)
    assert videos.settings.guidance_scale_txt == 1 and videos.settings.guidance == "none"
    asked = animate(photo, "zoom in", seed=1, num_inference_steps=1, guidance_scale_txt=1.0)
    assert (videos.latents == asked.latents).all()
    old = ImageToVideo.from_bundle(recommend(demo_bundle, tmp_path / "old", None), device="cpu")
    assert chosen(old.check(photo, "zoom in").settings) == PUBLISHED


@pytest.mark.slow
def test_the_command_follows_the_bundle(consisti2v, demo_bundle, photo, tmp_path, monkeypatch):
    ran = []
    call = ImageToVideo.__call__

    def spied(self, *arguments, **options):
        videos = call(self, *arguments, **options)
        ran.append(videos.settings)
        return videos

    monkeypatch.setattr(ImageToVideo, "__call__", spied)
    bundle = recommend(demo_bundle, tmp_path / "bundle", {"num_inference_steps": 2, "guidance_scale_txt": 1.0})
    generate = ("generate", "-b", bundle, "-i", photo, "-p", "pan", "-o", tmp_path / "v.gif", "--fit", "stretch")
    for options in ((), ("--steps", 1, "--guidance-scale", 7.5)):
        outcome = consisti2v(*generate, *options)
        assert outcome.code == 0 and outcome.stderr == ""
    assert [(settings.num_inference_steps, settings.guidance_scale_txt) for settings in ran] == [(2, 1.0), (1, 7.5)]
    monkeypatch.chdir(tmp_path)
    assert consisti2v("demo", "--steps", 1).code == 0
    assert ran[-1].guidance == "none"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (
            {"num_inference_steps": 0},
            "recommended num_inference_steps 0 is not possible: give a whole number from 1 to",
        ),
        ({"num_inference_steps": 10**18}, "num_inference_steps"),
        ({"num_inference_steps": 2.5}, "entry recommended.num_inference_steps has the wrong kind"),
        ({"guidance_scale_txt": 1e300}, "recommended guidance_scale_txt 1e+300 is not possible"),
        ({"guidance_scale_img": 1e9}, "recommended guidance_scale_img"),
        ({"guidance_rescale": 2}, "recommended guidance_rescale 2.0"),
        ({"guidance_interval": [0.8, 0.2]}, "recommended guidance_interval 0.8 to 0.2 is empty"),
        ({"guidance_interval": [0.1]}, "give two numbers"),
        ({"guidance_interval": ["a", "b"]}, "entry recommended.guidance_interval[0]"),
        ({"scheduler": "heun"}, "recommended scheduler 'heun' is unknown: choose ddim"),
        ({"scheduler": "lcm", "num_inference_steps": 60}, "from 1 to 50"),
        ({"frame_stride": 0}, "recommended frame_stride 0"),
        ({"known_prompts": ["zoom in", ""]}, "recommended known_prompts holds ''"),
        ({"known_prompts": ["\x1b[2Jzoom"]}, r"recommended known_prompts holds '\x1b[2Jzoom'"),
        ({"known_prompts": ["a" * 300]}, "at most 200 characters"),
        ({"known_prompts": ["zoom in"] * 1001}, "at most 1000 texts"),
        ({"known_prompts": "zoom in"}, "entry recommended.known_prompts"),
        ({"camera_motions": ["roll"]}, "recommended camera_motions 'roll' is unknown: choose pan_left"),
        ({"colour": 1}, "entry recommended.colour is unknown"),
        ([], "entry recommended must be an object"),
    ],
)
def test_impossible_recommendations_are_refused_at_opening(consisti2v, demo_bundle, tmp_path, entry, says):
    bundle = recommend(demo_bundle, tmp_path / "bundle", entry)
    message = consisti2v("inspect", bundle).refusal()
    assert message.startswith("bundle.json: ") and says in message


def test_inspect_shows_the_recommendation(consisti2v, demo_bundle, tmp_path):
    shown = consisti2v("inspect", demo_bundle).stdout
    assert "guidance_scale_txt 1.0" in shown and "rotate clockwise" in shown
    assert [line.split()[-1] for line in shown.splitlines() if "camera motions" in line] == ["none"]
    shown = consisti2v("inspect", recommend(demo_bundle, tmp_path / "old", None)).stdout
    assert "the published settings" in shown and "known prompts" not in shown and "camera motions" not in shown


def test_options_are_read_as_recommendations(demo_manifest):
    scheduler = demo_manifest.scheduler
    first = recommended_settings({"guidance_interval": [0, 0.5], "frame_stride": 2}, scheduler, "here")
    assert first == RecommendedSettings(guidance_interval=(0, 0.5), frame_stride=2)
    merged = recommended_settings({"frame_stride": 4}, scheduler, "here", first)
    assert merged == dataclasses.replace(first, frame_stride=4)
    for options, says in (
        ({"frame_strid": 2}, "here: setting 'frame_strid' cannot be recommended: did you mean frame_stride"),
        ({"frame_stride": "2"}, "here: recommended frame_stride '2'"),
        ({"known_prompts": "zoom"}, "known_prompts is not possible: give a list"),
        ({"known_prompts": [3]}, "known_prompts holds '3'"),
        ({"camera_motions": {}}, "camera_motions is not possible: give a list"),
    ):
        with pytest.raises(UserError, match=says):
            recommended_settings(options, scheduler, "here")


@pytest.mark.parametrize(
    "prompt",
    ["zoom in", "ZOOM  In", " a cat, zoom in! ", "\tZoom\nin", "the camera pans left", "", "  ", "...", "\uff3aoom in"],
)
def test_known_prompts_give_no_notice(demo_manifest, prompt):
    assert notices(demo_manifest.recommended, [prompt], None) == {}


@pytest.mark.parametrize("prompt", ["a cat turns its head", "zoom into it", "in zoom", "distill", "zoom\x1b[2J"])
def test_an_unknown_prompt_is_told_what_the_model_knows(demo_manifest, prompt):
    (notice,) = notices(demo_manifest.recommended, ["zoom in", prompt], None).values()
    assert notice.startswith(f"the prompt {prompt!r} is unknown to this model, which knows pan left, pan right, ")
    assert notice.isprintable() and "rotate counterclockwise, still and 25 more ('consisti2v inspect'" in notice


def test_a_list_of_prompts_gets_one_notice(demo_manifest):
    found = notices(demo_manifest.recommended, ["a" * 500, "b", "a" * 500, "zoom in"], None)
    assert (
        list(found) == ["prompt"] and found["prompt"].startswith("2 prompts, as 'aaaa") and len(found["prompt"]) < 400
    )


@pytest.mark.parametrize("motion", CAMERA_MOTIONS)
def test_camera_motions_without_effect(demo_manifest, motion):
    found = notices(demo_manifest.recommended, ["zoom in"], motion)
    assert found["camera_motion"].startswith(
        f"camera motion {motion} moves nothing in this model; it knows the prompts"
    )
    some = RecommendedSettings(camera_motions=("pan_left", "zoom_in"))
    found = notices(some, ["anything"], motion)
    assert found == {} or found["camera_motion"].endswith(
        f"{motion} moves nothing in this model; it follows pan_left, zoom_in."
    )
    assert bool(found) == (motion not in some.camera_motions)
    assert notices(RecommendedSettings(), ["anything"], motion) == {}


@pytest.mark.slow
def test_the_library_warns_once(demo_bundle, photo, caplog):
    animate = ImageToVideo.from_bundle(demo_bundle, device="cpu")
    with caplog.at_level(logging.WARNING, "consisti2v_rt"):
        for prompt in ("a cat", ["a cat", "a dog"]):
            animate(photo, prompt, num_inference_steps=1, seed=1)
        assert [record.name for record in caplog.records] == ["consisti2v_rt"]
        assert caplog.messages[0].startswith("the prompt 'a cat' is unknown")
        animate(photo, "zoom in", camera_motion="pan_left", num_inference_steps=1, seed=1)
        assert len(caplog.messages) == 2 and caplog.messages[1].startswith("camera motion pan_left moves nothing")


@pytest.mark.slow
def test_the_command_notes_once(consisti2v, demo_bundle, photo, tmp_path):
    output = ("--steps", 1, "-o", tmp_path / "v.gif", "--fit", "stretch")
    outcome = consisti2v("generate", "-b", demo_bundle, "-i", photo, "-p", "a [red]cat", "-p", "a dog", *output)
    assert outcome.code == 0
    (line,) = outcome.stderr.splitlines()
    assert line.startswith("note: 2 prompts, as 'a [red]cat', are unknown to this model, which knows pan left, ")


def test_the_demo_checkpoint_and_its_bundle_recommend_the_same(demo_manifest):
    pytest.importorskip("torch")
    from consisti2v_rt.models.demo.making.captions import MOVE_PHRASES
    from consisti2v_rt.models.demo.making.recommendation import DEMO_RECOMMENDED

    data = json.loads((ROOT / "models" / "demo" / "recommended.json").read_text(encoding="utf-8"))
    read = recommended_settings(data, demo_manifest.scheduler, "recommended.json")
    assert read == DEMO_RECOMMENDED == demo_manifest.recommended
    assert set(read.known_prompts or ()) == {phrase for phrases in MOVE_PHRASES.values() for phrase in phrases}
