"""``consisti2v batch`` on one machine: what it writes, and how it goes on after a failure, a kill or a damaged file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from consisti2v_rt import ImageToVideo
from consisti2v_rt.batch.rows import read_rows
from consisti2v_rt.runtime.request.settings import GenerationSettings

from .conftest import Listing, lines_of

pytestmark = pytest.mark.slow

Command = Callable[..., Any]


def test_every_row_becomes_the_video_that_the_library_makes(
    make_listing: Listing, bundle: Path, tmp_path: Path, consisti2v: Command
) -> None:
    listing = make_listing({"seed": 3}, {"negative_prompt": "1", "guidance_scale": 2.0})
    outcome = consisti2v("batch", listing, "-o", tmp_path / "out", "-b", bundle, "--format", "png")
    assert outcome.code == 0, outcome.stderr
    lines = lines_of(tmp_path / "out")
    with ImageToVideo.from_bundle(bundle) as animate:
        for line in lines:
            settings = {name: line["settings"][name] for name in ("seed", "guidance_scale_txt", "negative_prompt")}
            expected = animate(tmp_path / line["image"], line["prompt"], num_inference_steps=2, **settings)
            expected.save(tmp_path / "expected.png")
            for number, name in enumerate(line["files"]):
                same = (tmp_path / "out" / name).read_bytes() == (tmp_path / f"expected-{number:03d}.png").read_bytes()
                assert same, name
    assert lines[1]["settings"]["negative_prompt"] == "1"
    assert all(line["error"] is None and line["bundle"] and line["seconds"] > 0 for line in lines)


def test_a_seed_comes_from_the_row_not_from_its_place(make_listing: Listing, tmp_path: Path) -> None:
    listing = make_listing({}, {}, {"seed": 7})
    there, _ = read_rows(listing, None, GenerationSettings(), 10)
    listing.write_text("\n".join(reversed(listing.read_text().splitlines())))
    back, _ = read_rows(listing, None, GenerationSettings(), 10)
    assert {row.key: row.settings.seed for row in there} == {row.key: row.settings.seed for row in back}
    assert there[0].settings.seed != there[1].settings.seed
    assert there[2].settings.seed == 7


def test_bad_rows_are_told_at_the_end_and_tried_again(
    make_listing: Listing, bundle: Path, tmp_path: Path, consisti2v: Command
) -> None:
    listing = make_listing({}, {"steps": 0}, {"stepz": 3}, {"image": "missing.png"}, {"seed": "x"})
    (tmp_path / "1.png").write_text("no photo")
    outcome = consisti2v("batch", listing, "-o", tmp_path / "out", "-b", bundle)
    assert outcome.code == 2
    assert "4 of 5 rows failed" in outcome.stderr.splitlines()[-1]
    for part in ("line 2: num_inference_steps 0", "did you mean", "missing.png", "line 5: "):
        assert part in outcome.stderr, part
    first = lines_of(tmp_path / "out")
    assert [line["line"] for line in first if line["error"] is None] == [1]
    outcome = consisti2v("batch", listing, "-o", tmp_path / "out", "-b", bundle)
    assert "1 of 5 rows are done already" in outcome.stderr
    assert len(lines_of(tmp_path / "out")) == 2 * len(first) - 1


def test_rows_that_repeat_run_once_and_deleted_videos_are_made_again(
    make_listing: Listing, bundle: Path, tmp_path: Path, consisti2v: Command
) -> None:
    listing = make_listing({})
    listing.write_text(listing.read_text() * 2)
    assert (
        "1 row(s) repeat"
        in consisti2v("batch", listing, "-o", tmp_path / "out", "-b", bundle, "--format", "gif").stderr
    )
    (line,) = lines_of(tmp_path / "out")
    video = tmp_path / "out" / line["files"][0]
    before = video.read_bytes()
    video.unlink()
    # A killed process leaves half a line.
    with (tmp_path / "out" / "results.jsonl").open("a") as file:
        file.write('{"key": "ab')
    consisti2v("batch", listing, "-o", tmp_path / "out", "-b", bundle, "--format", "gif")
    assert len(lines_of(tmp_path / "out")) == 2
    assert video.read_bytes() == before


@pytest.mark.rare
def test_a_killed_batch_goes_on_where_it_was(make_listing: Listing, bundle: Path, tmp_path: Path) -> None:
    listing = make_listing(*[{"seed": seed, "steps": 4} for seed in range(5)])
    command = [sys.executable, "-m", "consisti2v_rt", "batch", listing, "-o", tmp_path / "out", "-b", bundle]
    running = subprocess.Popen([*command, "--threads", "1"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _wait_for_lines(tmp_path / "out", 2)
    running.send_signal(signal.SIGKILL)
    running.wait()
    subprocess.run([*command, "--threads", "1"], check=True, capture_output=True)
    lines = lines_of(tmp_path / "out")
    assert sorted(line["line"] for line in lines) == [1, 2, 3, 4, 5]
    assert all((tmp_path / "out" / name).is_file() for line in lines for name in line["files"])


@pytest.mark.rare
@pytest.mark.skipif(sys.platform == "win32", reason="finds and kills child processes")
def test_a_worker_that_dies_fails_one_row_and_the_others_run(
    make_listing: Listing, bundle: Path, tmp_path: Path
) -> None:
    listing = make_listing(*[{"seed": seed, "steps": 5} for seed in range(6)])
    command = [sys.executable, "-m", "consisti2v_rt", "batch", listing, "-o", tmp_path / "out", "-b", bundle]
    running = subprocess.Popen(
        [*command, "--workers", "2", "--threads", "1"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    _wait_for_lines(tmp_path / "out", 1)
    workers = [child for child in psutil.Process(running.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    os.kill(workers[0].pid, signal.SIGKILL)
    _, told = running.communicate(timeout=60)
    lines = lines_of(tmp_path / "out")
    assert running.returncode == 2 and "1 of 6 rows failed" in told
    assert sorted(line["line"] for line in lines) == [1, 2, 3, 4, 5, 6]
    (failed,) = (line for line in lines if line["error"] is not None)
    assert "ended by itself (exit code -9)" in failed["error"]


def test_two_batches_do_not_share_a_folder(
    make_listing: Listing, bundle: Path, tmp_path: Path, consisti2v: Command
) -> None:
    from consisti2v_rt.batch.results import open_results

    listing = make_listing({})
    with open_results(tmp_path / "out"):
        told = consisti2v("batch", listing, "-o", tmp_path / "out", "-b", bundle).refusal()
    assert f"in use by process {os.getpid()}" in told


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--format", "avi"), "--format avi is unknown"),
        (("--set", "steps"), "is not name=value"),
        (("--workers", "0"), "--workers 0"),
        (("--max-rows", "1"), "more than 1 rows"),
        (("--bundle", "nowhere"), "bundle nowhere does not exist"),
        (("--ray", "ray://127.0.0.1:1"), "ray job submit"),
    ],
)
def test_refusals(
    arguments: tuple[str, str], part: str, make_listing: Listing, bundle: Path, tmp_path: Path, consisti2v: Command
) -> None:
    listing = make_listing({}, {})
    assert part in consisti2v("batch", listing, "-o", tmp_path / "out", "-b", bundle, *arguments).refusal()


def test_a_csv_names_settings_in_its_columns(tmp_path: Path, make_listing: Listing) -> None:
    make_listing({}, {})
    listing = tmp_path / "rows.csv"
    listing.write_text(
        'image,caption,steps,guidance_interval,camera_motion\n0.png,a,5,"[0.2,0.8]",\n1.png,b,,,pan_left\n'
    )
    rows, _ = read_rows(listing, None, GenerationSettings(), 10)
    assert rows[0].options == {"num_inference_steps": 5, "guidance_interval": [0.2, 0.8]}
    assert rows[0].settings.guidance_interval == (0.2, 0.8)
    assert rows[1].options == {"camera_motion": "pan_left"}
    assert json.dumps(rows[1].result(None))


def _wait_for_lines(folder: Path, count: int) -> None:
    """Until the results file holds so many lines."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        file = folder / "results.jsonl"
        if file.exists() and file.read_text().count("\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError("no results within a minute")
