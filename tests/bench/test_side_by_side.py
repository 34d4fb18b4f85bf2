"""``bench side-by-side`` for real: torch and a session on the same work, in turns."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt.benchmarks.bench.candidates import Plan
from consisti2v_rt.benchmarks.bench.compare import missing_fields
from consisti2v_rt.benchmarks.bench.record import read_record

pytest.importorskip("torch")
QUICK = ("--rounds", "1", "--warmup", "0", "--threads", "1")


@pytest.mark.rare
def test_both_formulations_agree(consisti2v: Callable[..., Any], demo_bundle: Path, tmp_path: Path) -> None:
    rows = ("--row", "onnxruntime-cpu", "--row", "onnxruntime-cpu:int8")
    outcome = consisti2v("bench", "side-by-side", demo_bundle, *rows, *QUICK, "-o", tmp_path / "r.json")
    assert outcome.code == 0, outcome.stderr
    record = read_record(tmp_path / "r.json")
    published, session, quantised = record.targets
    assert missing_fields(record) == []
    # Random weights are made again from their seed.
    assert published.name == "torch-eager fp32" and published.relative_l2 == 0 and published.speed_up == 1
    assert session.relative_l2 is not None and 0 < session.relative_l2 < 2e-5
    assert session.speed_up == pytest.approx(published.rows[0].median / session.rows[0].median)
    assert "no int8 graph" in (quantised.unavailable or "")
    # torch alone takes more than the whole session.
    assert (published.host_peak_bytes or 0) > 150 * 2**20 > 30 * 2**20 < (session.host_peak_bytes or 0)
    assert "1.00x" in outcome.stdout and "Not measured: onnxruntime-cpu int8" in outcome.stdout


@pytest.mark.rare
def test_other_weights_than_the_bundle_s_show(
    consisti2v: Callable[..., Any], demo_bundle: Path, tmp_path: Path
) -> None:
    """And one process at a time gives a record of the same form."""
    bundle = tmp_path / "bundle"
    shutil.copytree(demo_bundle, bundle)
    manifest = bundle / "bundle.json"
    manifest.write_text(manifest.read_text().replace("(tiny), seed 0", "(tiny), seed 1"))
    rows = ("--row", "onnxruntime-cpu:fp32", "--no-resident")
    outcome = consisti2v("bench", "side-by-side", bundle, *rows, *QUICK, "-o", tmp_path / "r.json")
    assert outcome.code == 0, outcome.stderr
    record = read_record(tmp_path / "r.json")
    assert (record.targets[1].relative_l2 or 0) > 0.1 and record.settings["resident"] is False


@pytest.mark.slow
def test_without_the_weights_the_published_rows_say_so(
    consisti2v: Callable[..., Any], demo_bundle: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(demo_bundle, bundle)
    manifest = bundle / "bundle.json"
    manifest.write_text(manifest.read_text().replace("random weights (tiny), seed 0", "somewhere"))
    rows = ("--row", "onnxruntime-cpu:fp32")
    consisti2v("bench", "side-by-side", bundle, *rows, *QUICK, "-o", tmp_path / "r.json")
    published, session = read_record(tmp_path / "r.json").targets
    assert "--checkpoint" in (published.unavailable or "")
    assert session.unavailable is None and session.relative_l2 is None and session.rows


def test_turns_of_a_plan() -> None:
    """One at a time: everyone comes up twice, so that a drift of the machine reaches all."""
    assert Plan(1, 5, resident=False).visits == [3, 2] and Plan(2, 5, resident=True).visits == [5]
    assert Plan(1, 1, resident=False).visits == [1]
