"""``bench compare``: verdicts per row, and what else differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt.benchmarks.bench.record import Record

CALM = [1.0, 1.01, 0.99, 1.02, 1.0]


@pytest.fixture
def files(tmp_path: Path, make_record: Callable[..., Record]) -> Callable[..., list[Path]]:
    def save(factor: float, kind: str = "latency", **changes: Any) -> list[Path]:
        first, second = make_record(kind, CALM), make_record(kind, [factor * value for value in CALM])
        for name, value in changes.items():
            setattr(second, name, value)
        for name, record in (("a.json", first), ("b.json", second)):
            record.save(tmp_path / name)
        return [tmp_path / "a.json", tmp_path / "b.json"]

    return save


def test_a_record_against_itself(consisti2v: Callable[..., Any], files: Callable[..., list[Path]]) -> None:
    path, _ = files(1.0)
    outcome = consisti2v("bench", "compare", path, path)
    assert outcome.code == 0 and outcome.stdout.splitlines()[-1] == "2 within noise"
    assert "differ" not in outcome.stdout


def test_thirty_percent_slower(consisti2v: Callable[..., Any], files: Callable[..., list[Path]]) -> None:
    outcome = consisti2v("bench", "compare", *files(1.3))
    assert outcome.code == 0 and outcome.stdout.splitlines()[-1] == "2 slower"
    line = next(line for line in outcome.stdout.splitlines() if "U-Net" in line)
    assert "+30.0%" in line and "1.00 s" in line and "1.30 s" in line and line.rstrip().endswith("slower")
    faster = consisti2v("bench", "compare", *reversed(files(1.3)))
    assert faster.stdout.splitlines()[-1] == "2 faster"


def test_other_circumstances_are_told(consisti2v: Callable[..., Any], files: Callable[..., list[Path]]) -> None:
    changes = {
        "bundle": {"name": "other", "sha256": "1" * 64},
        "versions": {"python": "3.12"},
        "settings": {"rounds": 9, "num_inference_steps": 25},
        "machine": {"cpu": "[red]Other", "usable_cores": 2, "gpus": []},
    }
    text = consisti2v("bench", "compare", *files(1.0, **changes)).stdout
    for words in ("cpu Some CPU and [red]Other", "some_bundle and other", "python 3.11 and 3.12", "steps 50 and 25"):
        assert words in text, words
    assert "rounds" not in text


def test_less_exact_is_told(consisti2v: Callable[..., Any], files: Callable[..., list[Path]]) -> None:
    first, second = files(0.5, "side_by_side")
    second.write_text(second.read_text().replace('"relative_l2": 1e-06', '"relative_l2": 1e-03'))
    text = consisti2v("bench", "compare", first, second).stdout
    assert "1 faster" in text and "relative L2 1.0e-06, now 1.0e-03" in text


def test_records_that_have_nothing_in_common(
    consisti2v: Callable[..., Any], files: Callable[..., list[Path]], make_record: Callable[..., Record]
) -> None:
    first, second = files(1.0)
    make_record("side_by_side").save(second)
    assert "kind latency cannot be compared with" in consisti2v("bench", "compare", first, second).refusal()
    other = make_record("latency")
    other.subjects[0].name = "openvino fp32"
    other.save(second)
    assert "no row in common" in consisti2v("bench", "compare", first, second).refusal()
