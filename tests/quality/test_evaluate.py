"""``consisti2v evaluate`` as it is typed: table, JSON and contact sheet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from consisti2v_rt.benchmarks.quality.command import evaluate
from consisti2v_rt.benchmarks.quality.evaluation import contact_sheet
from consisti2v_rt.errors import UserError
from consisti2v_rt.runtime.install import install_hint
from consisti2v_rt.runtime.media.read_video import Video
from consisti2v_rt.runtime.media.video_file import save_frames

pytest.importorskip("cv2", reason="optical flow needs opencv-python-headless")

ASSETS = Path(__file__).parents[2] / "assets"
FAST = ("--set", "num_inference_steps=2", "--set", "guidance_scale_txt=1")


def call(*arguments: object) -> str:
    app = typer.Typer()
    app.command()(evaluate)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def videos(tmp_path, known) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("still", "real"):
        save_frames(known[name], folder / f"{name}.mp4")
    (folder / "captions.csv").write_text("path,caption\nstill.mp4,still\nreal.mp4,pan right\n")
    return folder


def test_a_folder(videos, tmp_path):
    measures = ("temporal_flickering", "dynamic_degree", "psnr", "latent_relative_l2")
    chosen = [word for name in measures for word in ("-m", name)]
    out = tmp_path / "out"
    text = call(videos, "-o", out, "--captions", videos / "captions.csv", "--against", videos, *chosen)
    record = json.loads((out / "quality.json").read_text(), parse_constant=pytest.fail)
    found = record["measures"]
    assert found["flow_magnitude_dis"]["network"]["library"].startswith("opencv-python-headless ")
    assert found["psnr"]["value"] == "infinite"
    assert found["latent_relative_l2"]["status"] == "unavailable" and "latents" in found["latent_relative_l2"]["reason"]
    assert found["temporal_flickering"]["per_video"]["still.mp4"] > 0.999
    assert record["made_by"] == {"kind": "files", "source": "videos"}
    assert record["evaluation"]["measures"] == list(measures)
    assert record["evaluation"]["networks"]["dino"] == "facebook/dino-vitb16"
    assert record["versions"]["numpy"] == np.__version__
    assert [video["caption"] for video in record["videos"]] == ["pan right", "still"]
    # Frozen videos win at flickering, so how much moves stands in the same row.
    row = next(line for line in text.splitlines() if "temporal_flickering" in line)
    assert "DIS 0.50" in row and "px" in row
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 6 * 128 and sheet.height > 2 * 128
        assert np.asarray(sheet).std() > 20


@pytest.mark.slow
def test_generated_videos_and_their_fidelity(tmp_path):
    """What is kept of a run is judged equal to itself, and another seed's videos are not."""
    (tmp_path / "photo.jpg").write_bytes((ASSETS / "example.jpg").read_bytes())
    inputs = tmp_path / "inputs.jsonl"
    inputs.write_text(json.dumps({"image": "photo.jpg", "prompt": "zoom in"}) + "\n")
    generate = ("--bundle", ASSETS / "demo_bundle", "--inputs", inputs, *FAST)
    fidelity = ("-m", "psnr", "-m", "ssim", "-m", "latent_relative_l2")
    kept = tmp_path / "a" / "frames"

    call(*generate, "-o", tmp_path / "a", "-m", "temporal_flickering")
    made_by = json.loads((tmp_path / "a" / "quality.json").read_text())["made_by"]
    assert made_by["backend"] == "onnxruntime-cpu" and made_by["bundle"] == "demo_bundle" and made_by["seeds"] == [0]
    assert made_by["settings"]["num_inference_steps"] == 2
    assert (tmp_path / "a" / "videos" / "0000-photo.mp4").is_file()

    call(kept / "videos.jsonl", "-o", tmp_path / "b", *fidelity, "--against", kept)
    same = json.loads((tmp_path / "b" / "quality.json").read_text())["measures"]
    assert same["psnr"]["value"] == "infinite" and same["latent_relative_l2"]["value"] == 0
    assert same["ssim"]["value"] == pytest.approx(1)

    call(*generate, "-o", tmp_path / "c", "--set", "seed=1", *fidelity, "--against", kept)
    other = json.loads((tmp_path / "c" / "quality.json").read_text())["measures"]
    assert other["latent_relative_l2"]["value"] > 0.01 and other["psnr"]["value"] < 60


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "either a folder"),
        (("videos", "--bundle", "b"), "either a folder"),
        (("--bundle", "b"), "needs --inputs"),
        (("videos", "--set", "seed=1"), "for generation"),
        (("videos", "-m", "fid"), "unknown: choose"),
        ((ASSETS,), "holds no video"),
        (("empty.csv", "--fvd", "c3d"), "i3d, videomae"),
        (("empty.csv", "--device", "abacus"), "cannot be used"),
        (("nowhere",), "does not exist"),
        (("listing.txt",), "must end in .csv or .jsonl"),
    ],
)
def test_bad_requests_are_refused(tmp_path, monkeypatch, arguments, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "listing.txt").touch()
    with pytest.raises(UserError, match=reason):
        call(*arguments)


def test_an_unavailable_measure_keeps_the_extra_it_names():
    """ "[quality]" is part of the advice, not markup."""
    from rich.console import Console

    from consisti2v_rt.benchmarks.quality.evaluation import MeasureResult, results_table
    from consisti2v_rt.benchmarks.quality.measures import choose_measures

    reason = f"DIS needs OpenCV: {install_hint('quality')}."
    console = Console(record=True, width=120)
    console.print(results_table([MeasureResult(choose_measures(["psnr"])[0], None, reason)], 1))
    assert reason in console.export_text()


@pytest.mark.parametrize("caption", ["two\nlines\x1b[2J", "x" * 100_000], ids=["lines", "long"])
def test_a_contact_sheet_of_any_caption(caption):
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    sheet = contact_sheet([Video("a.mp4", frames, 8.0, caption)])
    assert sheet.width > 100 and len(sheet.getcolors()) > 1
