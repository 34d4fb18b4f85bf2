"""``bench BUNDLE`` for real: whole videos in a child process, and what is left of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from consisti2v_rt.benchmarks.bench.compare import missing_fields
from consisti2v_rt.benchmarks.bench.record import read_record
from consisti2v_rt.benchmarks.bench.tables import STAGES
from consisti2v_rt.runtime.bundle.bundle import Bundle

pytestmark = pytest.mark.slow

QUICK = ("--steps", "2", "--rounds", "2", "--warmup", "1", "--threads", "1")


def test_a_small_run(consisti2v: Callable[..., Any], demo_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    outcome = consisti2v("bench", demo_bundle, *QUICK, "-o", path)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.splitlines()[-1] == str(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
    record, model = read_record(path), Bundle.open(demo_bundle, verify=False).manifest.model
    assert record.kind == "latency" and record.settings["num_inference_steps"] == 2
    assert missing_fields(record) == []
    assert record.settings["image"] == "example.jpg" and record.bundle["frames"] == model.frames
    (target,) = record.targets
    assert (target.backend, target.precision, target.device) == ("onnxruntime-cpu", "fp32", "cpu")

    rows = {row.name: row for row in target.rows}
    assert set(STAGES.values()) | {"video"} <= set(rows)
    assert all(len(row.seconds) == 2 and row.first is not None for row in rows.values())
    # New prompts in every run: the text stages are paid each time, and loading only once.
    for stage in set(STAGES.values()) - {"load"}:
        assert min(rows[stage].seconds) > 0, stage
    assert rows["load"].first == pytest.approx(target.first["load"])
    for number in range(2):
        parts = sum(row.seconds[number] for name, row in rows.items() if name != "video")
        assert 0 < parts <= rows["video"].seconds[number]
    assert (rows["U-Net"].runs, rows["text encoder"].runs, rows["VAE decoder"].runs) == (2, 2, model.frames)
    # An interpreter with NumPy and ONNX Runtime, without torch.
    assert 30 * 2**20 < (target.host_peak_bytes or 0) < 2**30
    assert record.runtime_bytes["onnxruntime"] > 10**7 and "torch" not in record.runtime_bytes
    assert 10**6 < record.runtime_bytes["consisti2v-rt"] < 10**8
    # Nobody's host name, user or folder.
    assert str(tmp_path) not in path.read_text() and str(demo_bundle.parent) not in path.read_text()
    for words in (
        "U-Net",
        "frames a second",
        "2 (few)",
        "min to max",
        "spent outside the U-Net's session",
        "Peak memory",
        "Installed size",
        "Spent once",
    ):
        assert words in outcome.stdout.replace("\u00a0", " "), words


def test_a_record_on_standard_output(consisti2v: Callable[..., Any], demo_bundle: Path, tmp_path: Path) -> None:
    arguments = ("--steps", "1", "--rounds", "1", "--warmup", "0", "--json", "-o", tmp_path / "run.json")
    outcome = consisti2v("bench", "run", demo_bundle, *arguments)
    assert outcome.stdout == (tmp_path / "run.json").read_text(encoding="utf-8")
    (video,) = [row for row in json.loads(outcome.stdout)["targets"][0]["rows"] if row["name"] == "video"]
    # Without a warm-up the first run is the measured one.
    assert video["seconds"] == [video["first"]]


def test_refusals(consisti2v: Callable[..., Any], demo_bundle: Path, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "run.json")
    for arguments, words in (
        ([tmp_path], "is not a bundle"),
        ([demo_bundle, "-o", tmp_path / "none" / "run.json"], "make it first"),
        ([demo_bundle, "--steps", "0", *output], "num_inference_steps 0 is not possible"),
        ([demo_bundle, "--row", "onnx:fp32", *output], "is no backend:precision"),
        ([demo_bundle, "--row", "torch-eager:fp32", *output], "side-by-side"),
        ([demo_bundle, "--device", "tpu", *output], "device 'tpu' is unknown"),
    ):
        assert words in consisti2v("bench", *arguments).refusal()
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_cannot_run_says_why(consisti2v: Callable[..., Any], demo_bundle: Path, tmp_path: Path) -> None:
    """The bundle has no int8 graphs; the photo of the other row is no photo."""
    (tmp_path / "photo.jpg").write_text("no photo")
    rows = ("--row", "onnxruntime-cpu:int8", "--row", "onnxruntime-cpu:fp32")
    image = ("--image", tmp_path / "photo.jpg")
    outcome = consisti2v("bench", demo_bundle, *rows, *image, *QUICK, "-o", tmp_path / "run.json")
    assert outcome.code == 0, outcome.stderr
    first, second = read_record(tmp_path / "run.json").targets
    assert "no int8 graph" in (first.unavailable or "") and "photo.jpg" in (second.unavailable or "")
    assert first.rows == second.rows == [] and outcome.stdout.count("Not measured: onnxruntime-cpu") == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one child")
def test_ctrl_c_leaves_no_file_and_no_process(demo_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "consisti2v_rt", "bench", str(demo_bundle), "--steps", "500", "-o", "run.json"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            children: list[psutil.Process] = []
            end = time.monotonic() + 60
            while not children and time.monotonic() < end:
                children = psutil.Process(process.pid).children()
                time.sleep(0.05)
            assert children
            # Somewhere in its start, its loading or its first steps: nothing of it may matter.
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130 and re.search("nothing half-written is left", stderr), stderr
    assert "Traceback" not in stderr and list(tmp_path.iterdir()) == []
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
