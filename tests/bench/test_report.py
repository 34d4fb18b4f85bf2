"""Pictures and Markdown from records, and the block of the README."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from consisti2v_rt import UserError
from consisti2v_rt.benchmarks.bench.record import KINDS, Record
from consisti2v_rt.benchmarks.bench.report import BEGIN, END, replace_block

pytest.importorskip("matplotlib")


def drawn(path: Path) -> bool:
    """A picture with something on it."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return pixels.shape[0] > 150 and pixels.shape[1] > 400 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 3


def test_the_block_is_replaced_and_nothing_else() -> None:
    text = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    once = replace_block(text, "new\n", "README.md")
    assert once == f"above\n{BEGIN}\n\nnew\n\n{END}\nbelow\n"
    assert replace_block(once, "new\n", "README.md") == once


@pytest.mark.parametrize("text", ["nothing", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_marks_that_are_not_there(text: str) -> None:
    with pytest.raises(UserError, match=r"README\.md must hold the line"):
        replace_block(text, "new", "README.md")


@pytest.mark.slow
def test_every_kind_of_record_into_a_readme(
    tmp_path: Path, make_record: Callable[..., Record], consisti2v: Callable[..., Any]
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    for kind in KINDS:
        make_record(kind).save(results / f"{kind}.json")
    consisti2v("bench", "--predict", "rtx-4090", "--output", results / "prediction.json")
    names = [*KINDS, "prediction"]
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\n{END}\n\nthe end\n", encoding="utf-8")
    outcome = consisti2v("bench", "report", *(results / f"{name}.json" for name in names), "--readme", readme)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stdout.split() == [*(str(results / f"{name}.png") for name in names), str(readme)]
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("# Title\n") and text.endswith("\n\nthe end\n")
    for name in names:
        assert drawn(results / f"{name}.png")
        assert f"](results/{name}.png)" in text and f"](results/{name}.json)" in text
    for words in (
        "| U-Net | 1.00 s | 900 ms to 1.10 s | 5 |",
        "1.50x (1.50 to 1.50)",
        "1.0e-06",
        "there is no GPU",
        "| frames 8 (one U-Net forward) | 500 ms | 450 ms to 550 ms | 5 |",
        "RTX 4090 at 450 W",
    ):
        assert words in text, words
    assert "| exact: 50 steps |" in text and "Predicted, not measured" in text


@pytest.mark.parametrize("kind", KINDS)
def test_few_rounds_are_marked(
    tmp_path: Path, make_record: Callable[..., Record], consisti2v: Callable[..., Any], kind: str
) -> None:
    make_record(kind, [1.0, 2.0]).save(tmp_path / "a.json")
    assert consisti2v("bench", "report", tmp_path / "a.json", "-o", tmp_path / "report.md").code == 0
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "| min to max 1.00 s to 2.00 s | 2 (few) |" in text and "Fewer than 5 rounds give no interval" in text
    assert kind != "side_by_side" or "1.50x (no interval)" in text


def test_a_report_of_its_own(
    tmp_path: Path, make_record: Callable[..., Record], consisti2v: Callable[..., Any]
) -> None:
    make_record().save(tmp_path / "a.json")
    assert consisti2v("bench", "report", tmp_path / "a.json", "-o", tmp_path / "report.md").code == 0
    assert "](a.png)" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_refusals(tmp_path: Path, make_record: Callable[..., Record], consisti2v: Callable[..., Any]) -> None:
    make_record().save(tmp_path / "a.json")
    (tmp_path / "other.json").write_text(json.dumps({"seconds": 1}))
    (tmp_path / "readme.md").write_text("no marks")
    report = [tmp_path / "a.json"]
    for arguments, words in (
        ([*report], "either --output"),
        ([*report, "--readme", tmp_path / "none.md"], "does not exist"),
        ([*report, "--readme", tmp_path / "readme.md"], "each once"),
        ([*report, "-o", tmp_path / "none" / "report.md"], "make it first"),
        ([tmp_path / "other.json", "-o", tmp_path / "report.md"], "is not a record"),
    ):
        assert words in consisti2v("bench", "report", *arguments).refusal()
    assert (tmp_path / "readme.md").read_text() == "no marks" and not (tmp_path / "report.md").exists()
