"""``bench compare``: verdicts per row, and records that were not measured alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt.benchmarks.bench.compare import compare_records
from consisti2v_rt.benchmarks.bench.record import Record

CALM = [1.0, 1.01, 0.99, 1.02, 1.0]


@pytest.fixture
def files(tmp_path: Path, make_record: Callable[..., Record]) -> Callable[..., list[Path]]:
    """Two records on disk; the second one `factor` times as slow, with some of its entries replaced."""

    def save(factor: float, kind: str = "latency", samples: list[float] = CALM, **changes: Any) -> list[Path]:
        first, second = make_record(kind, samples), make_record(kind, [factor * value for value in samples])
        for name, value in changes.items():
            setattr(second, name, {**getattr(second, name), **value})
        for name, record in (("a.json", first), ("b.json", second)):
            record.save(tmp_path / name)
        return [tmp_path / "a.json", tmp_path / "b.json"]

    return save


def test_a_record_against_itself(consisti2v: Callable[..., Any], files: Callable[..., list[Path]]) -> None:
    path, _ = files(1.0)
    outcome = consisti2v("bench", "compare", path, path)
    assert outcome.code == 0 and outcome.stdout.splitlines()[-1] == "2 no difference shown"
    assert "Warning" not in outcome.stdout and "differ:" not in outcome.stdout


def test_thirty_percent_slower(consisti2v: Callable[..., Any], files: Callable[..., list[Path]]) -> None:
    outcome = consisti2v("bench", "compare", *files(1.3))
    assert outcome.code == 0 and outcome.stdout.splitlines()[-1] == "2 slower"
    line = next(line for line in outcome.stdout.splitlines() if "U-Net" in line).replace("\u00a0", " ")
    for words in ("+30.0%", "1.00 s", "1.30 s", "+27.5% to +32.6%", "5, 5"):
        assert words in line, words
    assert line.rstrip(" |").endswith("slower")
    assert "bootstrap interval" in outcome.stdout and "seed 0" in outcome.stdout
    faster = consisti2v("bench", "compare", *reversed(files(1.3)))
    assert faster.stdout.splitlines()[-1] == "2 faster"
    assert consisti2v("bench", "compare", *reversed(files(1.3))) == faster, "the same again"


@pytest.mark.parametrize("samples", [[1.0, 1.0, 1.0, 1.0], [1.0, 1.2, 0.8, 1.1, 0.9]], ids=["four rounds", "noise"])
def test_too_few_samples(
    consisti2v: Callable[..., Any], files: Callable[..., list[Path]], samples: list[float]
) -> None:
    paths = files(684.54, samples=samples)
    outcome = consisti2v("bench", "compare", *paths)
    assert outcome.code == 0 and outcome.stdout.splitlines()[-1] == "2 too few samples"
    assert consisti2v("bench", "compare", *paths, "--fail-on", "slower").code == 0
    assert consisti2v("bench", "compare", *paths, "--fail-on", "too-few-samples").code == 1


def test_exit_code_where_a_script_wants_one(consisti2v: Callable[..., Any], files: Callable[..., list[Path]]) -> None:
    slower = consisti2v("bench", "compare", *files(1.3), "--fail-on", "slower")
    assert slower.code == 1 and slower.stderr == "" and slower.stdout.splitlines()[-1] == "2 slower"
    assert consisti2v("bench", "compare", *files(0.7), "--fail-on", "slower").code == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("bundle", {"bundle": {"sha256": "1" * 64}}, "bundle: sha256 000000000... (some_bundle) and 111111111..."),
        ("settings", {"settings": {"num_inference_steps": 25}}, "settings: num_inference_steps 50 and 25"),
        ("settings", {"settings": {"image_sha256": "b" * 64}}, "settings: image_sha256"),
        ("settings", {"settings": {"warmup": 0}}, "settings: warmup 1 and 0"),
        ("settings", {"settings": {"time_limit": 3}}, "settings: time_limit absent and 3"),
        ("machine", {"machine": {"cpu": "Other CPU"}}, "machine: cpu Some CPU and Other CPU"),
        ("machine", {"machine": {"system": "Linux 7"}}, "machine: system"),
        ("machine", {"machine": {"memory_bytes": 2**34}}, "machine: memory_bytes"),
        ("machine", {"machine": {"usable_cores": 1}}, "machine: usable_cores"),
        ("machine", {"machine": {"instruction_sets": []}}, "machine: instruction_sets"),
        ("machine", {"machine": {"gpus": [{"name": "a GPU"}]}}, "machine: gpus"),
    ],
)
def test_records_not_measured_alike_are_refused(
    consisti2v: Callable[..., Any], files: Callable[..., list[Path]], part: str, changes: Any, words: str
) -> None:
    paths = files(2.0, **changes)
    sentence = consisti2v("bench", "compare", *paths).refusal()
    assert words in sentence and sentence.endswith("or compare anyway with --force.")
    forced = consisti2v("bench", "compare", *paths, "--force")
    assert forced.code == 0, forced.stderr
    assert f"Warning: not the same {words}" in forced.stdout
    assert forced.stdout.count("slower, forced") == 2
    assert forced.stdout.splitlines()[-1] == f"2 slower; compared by force, not measured alike: {part}"


def test_every_difference_is_named(consisti2v: Callable[..., Any], files: Callable[..., list[Path]]) -> None:
    changes = {
        "bundle": {"sha256": "1" * 64},
        "settings": {"prompt": "[red]other", "seed": 1},
        "machine": {"cpu": "Other CPU", "system": "Linux 7"},
    }
    sentence = consisti2v("bench", "compare", *files(1.0, **changes)).refusal()
    for words in ("sha256", "prompt zoom in and [red]other", "seed 0 and 1", "cpu Some CPU and Other", "Linux 7"):
        assert words in sentence, words


def test_what_may_differ(consisti2v: Callable[..., Any], files: Callable[..., list[Path]]) -> None:
    """More rounds, some memory that the kernel keeps, and versions: these are told, for they are often the question."""
    changes = {
        "settings": {"rounds": 9},
        "machine": {"memory_bytes": 8 * 2**30 - 2**20},
        "versions": {"python": "3.12", "openvino": "2026"},
    }
    outcome = consisti2v("bench", "compare", *files(1.0, **changes))
    assert outcome.code == 0 and "Warning" not in outcome.stdout
    for words in ("The versions differ: python 3.11 and 3.12.", "The versions differ: openvino absent and 2026."):
        assert words in outcome.stdout, words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "field"),
    [
        ("bundle", "sha256"),
        ("settings", "image_sha256"),
        ("settings", "threads"),
        ("machine", "system"),
        ("versions", "numpy"),
    ],
)
def test_a_record_that_does_not_say_what_ran(
    consisti2v: Callable[..., Any], files: Callable[..., list[Path]], part: str, field: str
) -> None:
    """Both lack it: that they agree is then not known."""
    paths = files(1.3)
    for path in paths:
        data = json.loads(path.read_text())
        del data[part][field]
        path.write_text(json.dumps(data))
    sentence = consisti2v("bench", "compare", *paths).refusal()
    assert f"a.json lacks {part}.{field}; " in sentence and f"b.json lacks {part}.{field}: " in sentence
    forced = consisti2v("bench", "compare", *paths, "--force")
    assert forced.code == 0 and forced.stdout.splitlines()[-1].startswith("2 slower; compared by force")
    assert f"a.json lacks {part}.{field}" in forced.stdout


def test_scaling_compares_the_model_of_every_point(
    consisti2v: Callable[..., Any], files: Callable[..., list[Path]]
) -> None:
    paths = files(1.0, "scaling", bundle={"models": {"frames 8": "9" * 64, "frames 16": "0" * 64}})
    assert "model of frames 8 888888888... and 999999999..." in consisti2v("bench", "compare", *paths).refusal()


def test_less_exact_is_told(consisti2v: Callable[..., Any], files: Callable[..., list[Path]]) -> None:
    first, second = files(0.5, "side_by_side")
    second.write_text(second.read_text().replace('"relative_l2": 1e-06', '"relative_l2": 1e-03'))
    text = consisti2v("bench", "compare", first, second).stdout
    assert "2 faster" in text and "relative L2 1.0e-06, now 1.0e-03" in text


def test_rows_that_are_not_compared_are_named(make_record: Callable[..., Record]) -> None:
    before, after = make_record(seconds=CALM), make_record(seconds=CALM)
    unet, video = after.targets[0].rows
    after.targets[0].rows = [replace(unet, name="unet"), replace(video, seconds=(0.0, *CALM[1:]))]
    before.targets[0].rows.append(replace(unet, name="photo"))
    after.targets[0].rows.append(replace(unet, name="photo"))
    rows, left_out = compare_records(before, after)
    assert [row.row for row in rows] == ["photo"]
    name = before.targets[0].name
    assert left_out == [f"{name} U-Net (only before)", f"{name} video (took no time)", f"{name} unet (only after)"]


def test_records_that_have_nothing_in_common(
    consisti2v: Callable[..., Any], files: Callable[..., list[Path]], make_record: Callable[..., Record]
) -> None:
    first, second = files(1.0)
    make_record("side_by_side").save(second)
    for options in ([], ["--force"]):
        sentence = consisti2v("bench", "compare", first, second, *options).refusal()
        assert "kind latency cannot be compared with" in sentence
    other = make_record("latency")
    other.targets[0].name = "openvino fp32"
    other.save(second)
    assert "no row in common" in consisti2v("bench", "compare", first, second).refusal()
