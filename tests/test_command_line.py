"""What the commands do when all is well: files, and what is said on which stream."""

from __future__ import annotations

import json
import re
import shutil

import av
import numpy as np
import pytest
from PIL import Image

from consisti2v_rt import __version__
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.manifest import STAGES, Manifest

COMMANDS = ("generate", "demo", "export", "inspect", "bench", "doctor")
LAST_LINE = re.compile(
    r"(?P<videos>\d+) video\(s\) of (?P<frames>\d+) frames (?P<width>\d+)x(?P<height>\d+), seed (?P<seed>.+), "
    r"(?P<total>[\d.]+) s: (?P<stages>[^;]+)"
    r"(; encoding [\d.]+ s, ([\d.]+ s of it )?overlapped with decoding)?"
)


@pytest.fixture
def model(demo_bundle):
    return Bundle.open(demo_bundle).manifest.model


def video_size(path) -> tuple[int, int, int]:
    with av.open(str(path)) as container:
        shapes = [frame.to_ndarray(format="rgb24").shape for frame in container.decode(video=0)]
    assert len(set(shapes)) == 1
    return len(shapes), *shapes[0][:2]


def test_version_as_a_process(consisti2v_process):
    outcome = consisti2v_process("--version")
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, f"consisti2v-rt {__version__}\n", "")


def test_help(consisti2v):
    outcome = consisti2v("--help")
    assert outcome.code == 0
    for command in COMMANDS:
        assert re.search(rf"^\W*{command}\s+\w", outcome.stdout, re.MULTILINE), command


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(consisti2v, command):
    outcome = consisti2v(command, "--help")
    assert outcome.code == 0 and outcome.stderr == ""
    assert re.search(rf"Usage: .*\b{command} \[OPTIONS\]", outcome.stdout)


@pytest.mark.slow
def test_generate_as_a_process(consisti2v_process, tmp_path, demo_bundle, photo, model):
    options = ["--prompt", "a cat", "--steps", "2", "--seed", "7", "--output", "cat.mp4"]
    outcome = consisti2v_process("generate", "--bundle", demo_bundle, "--image", photo, *options)
    assert outcome.code == 0, outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cat.mp4"]
    assert video_size(tmp_path / "cat.mp4") == (model.frames, model.height, model.width)

    *files, last = outcome.stdout.splitlines()
    kibibytes = round((tmp_path / "cat.mp4").stat().st_size / 1024)
    assert files == [f"cat.mp4  {kibibytes} KiB"]
    said = LAST_LINE.fullmatch(last)
    assert said and said["seed"] == "7" and said["videos"] == "1"
    assert (int(said["frames"]), int(said["height"]), int(said["width"])) == (model.frames, model.height, model.width)
    stages = dict(part.rsplit(" ", 2)[:2] for part in said["stages"].split(", "))
    assert {"load", "unet"} <= set(stages)
    assert sum(map(float, stages.values())) == pytest.approx(float(said["total"]), abs=0.1 * len(stages) + 0.5)
    # Nothing of a progress bar where there is no terminal; a note about untrained weights is all that may be said.
    assert "denoising" not in outcome.stdout + outcome.stderr and "\x1b" not in outcome.stdout + outcome.stderr
    assert [line for line in outcome.stderr.splitlines() if not line.startswith("note: ")] == []


@pytest.mark.slow
def test_generate_several_videos(consisti2v, tmp_path, demo_bundle, photo, model):
    options = ["--prompt", "a", "--prompt", "b", "--seed", "1", "--seed", "2", "--steps", "1"]
    output = tmp_path / "pair.webp"
    outcome = consisti2v("generate", "--bundle", demo_bundle, "--image", photo, *options, "--output", output)
    assert outcome.code == 0, outcome.stderr
    files = [tmp_path / "pair-0.webp", tmp_path / "pair-1.webp"]
    assert sorted(tmp_path.iterdir()) == files
    assert [line.split()[0] for line in outcome.stdout.splitlines()[:-1]] == list(map(str, files))
    said = LAST_LINE.fullmatch(outcome.stdout.splitlines()[-1])
    assert said and said["videos"] == "2" and said["seed"] == "(1, 2)"
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    assert pictures[0].shape == (model.height, model.width, 3) and not np.array_equal(*pictures)


@pytest.mark.slow
def test_the_seed_that_was_drawn_gives_the_same_video(consisti2v, tmp_path, demo_bundle, photo, model):
    options = ["generate", "--bundle", demo_bundle, "--image", photo, "--steps", "1", "--no-frameinit"]
    first = consisti2v(*options, "--output", tmp_path / "a.png")
    *files, last = first.stdout.splitlines()
    said = LAST_LINE.fullmatch(last)
    assert said
    # A long series is listed in short.
    indices = range(model.frames) if model.frames <= 8 else [0, 1, 2, model.frames - 1]
    assert [line.split()[0] for line in files] == [str(tmp_path / f"a-{index:03d}.png") for index in indices]

    second = consisti2v(*options, "--output", tmp_path / "b.png", "--seed", said["seed"], "--no-verify")
    assert second.code == 0
    assert len(list(tmp_path.iterdir())) == 2 * model.frames
    for index in (0, model.frames - 1):
        assert (tmp_path / f"a-{index:03d}.png").read_bytes() == (tmp_path / f"b-{index:03d}.png").read_bytes()


@pytest.mark.slow
def test_demo(consisti2v, tmp_path, model, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = consisti2v("demo", "--steps", "1", "--seed", "3")
    assert outcome.code == 0, outcome.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.gif", "demo.mp4"]
    assert [line.split()[0] for line in outcome.stdout.splitlines()[:-1]] == ["demo.mp4", "demo.gif"]
    assert video_size("demo.mp4") == video_size("demo.gif") == (model.frames, model.height, model.width)


@pytest.mark.slow
def test_demo_of_another_photo_as_a_gif_alone(consisti2v, tmp_path, model):
    Image.new("RGB", (40, 30), "teal").save(tmp_path / "teal.png")
    arguments = ["--image", tmp_path / "teal.png", "--output", tmp_path / "own.gif", "--steps", "1"]
    outcome = consisti2v("demo", *arguments)
    assert outcome.code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own.gif", "teal.png"]
    # That a bundle makes noise is said, and only then.
    assert ("weights of this bundle are untrained" in outcome.stderr) == (not model.trained)


def test_inspect(consisti2v, demo_bundle, model):
    outcome = consisti2v("inspect", demo_bundle)
    assert outcome.code == 0 and outcome.stderr == ""
    for text in (*STAGES, f"{model.width}x{model.height} pixels", "noise_pred float32 [", "licence"):
        assert text in outcome.stdout, text
    assert ("UNTRAINED" in outcome.stdout) == (not model.trained)


def test_inspect_json(consisti2v, demo_bundle):
    outcome = consisti2v("inspect", demo_bundle, "--json", "--verify")
    assert outcome.code == 0 and "all as recorded" in outcome.stderr
    assert Manifest.from_json(outcome.stdout) == Bundle.open(demo_bundle).manifest
    assert json.loads(outcome.stdout)["schema_version"] == 1


def test_inspect_verify(consisti2v, demo_bundle):
    outcome = consisti2v("inspect", demo_bundle, "--verify")
    count = len(Bundle.open(demo_bundle).manifest.files)
    assert outcome.code == 0 and re.search(
        rf"^{count} files, [\d.]+ MiB, all as recorded", outcome.stdout, re.MULTILINE
    )


@pytest.mark.slow
def test_inspect_shows_names_as_they_are(consisti2v, tmp_path, demo_bundle):
    """Brackets are no markup."""
    shutil.copytree(demo_bundle, tmp_path, dirs_exist_ok=True)
    manifest = json.loads((tmp_path / "bundle.json").read_text(encoding="utf-8"))
    manifest["provenance"]["source"] = "[/bold] of [red]me:cat:"
    (tmp_path / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    outcome = consisti2v("inspect", tmp_path)
    assert outcome.code == 0 and "[/bold] of [red]me:cat:" in outcome.stdout


def test_doctor(consisti2v):
    outcome = consisti2v("doctor")
    assert outcome.code == 0 and outcome.stderr == ""
    for text in ("Python ", "onnxruntime", "[export]", "ONNX Runtime CPU", "packages", "sessions"):
        assert text in outcome.stdout, text
    row = next(line for line in outcome.stdout.splitlines() if "ONNX Runtime CPU" in line)
    assert re.search(r"\byes\b", row)


@pytest.mark.slow
def test_a_module_is_run_like_the_command(consisti2v_process):
    outcome = consisti2v_process("inspect", "--help")
    assert outcome.code == 0 and "--verify" in outcome.stdout
