"""``bench scaling`` over the steps of a bundle that is there; the exports of the other axes by a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt.benchmarks.bench import scaling
from consisti2v_rt.benchmarks.bench.record import read_record
from consisti2v_rt.runtime.bundle import Bundle

QUICK = ("--rounds", "1", "--warmup", "0", "--threads", "1")


def test_steps_of_a_bundle(consisti2v: Callable[..., Any], demo_bundle: Path, tmp_path: Path) -> None:
    points = ("--steps", "3", "--steps", "1", "--steps", "3")
    outcome = consisti2v("bench", "--scaling", demo_bundle, *points, *QUICK, "-o", tmp_path / "s.json")
    assert outcome.code == 0, outcome.stderr
    (subject,) = read_record(tmp_path / "s.json").subjects
    assert [row.name for row in subject.rows] == ["steps 1", "steps 3"]
    assert all(len(row.seconds) == 1 for row in subject.rows)


def test_a_model_is_exported_for_each_number_of_frames(
    consisti2v: Callable[..., Any], demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[int | None] = []

    def export(random_weights: str, folder: Path, frames: int | None, console: Any) -> Bundle:
        exported.append(frames)
        return Bundle.open(demo_bundle, verify=False)

    monkeypatch.setattr(scaling, "_export", export)
    outcome = consisti2v("bench", "scaling", "--frames", "16", *QUICK, "-o", tmp_path / "s.json")
    assert outcome.code == 0, outcome.stderr
    assert exported == [None, 16] and "frames 16" in outcome.stdout


def test_refusals(consisti2v: Callable[..., Any], demo_bundle: Path, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "s.json")
    for arguments, words in (
        ([demo_bundle, "--frames", "8"], "built for one number of frames"),
        ([demo_bundle, "--batch", "3"], "--dynamic"),
        (["--random-weights", "none.json", "--steps", "1"], "not a readable JSON file"),
    ):
        assert words in consisti2v("bench", "scaling", *arguments, *output).refusal()
    assert list(tmp_path.iterdir()) == []


def test_names_of_points() -> None:
    assert scaling.split_name("resolution 128") == ("resolution", 128)
