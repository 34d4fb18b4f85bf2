"""``bench scaling`` over the steps of a bundle that is there; the exports of the other axes by a stand-in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt import UserError
from consisti2v_rt.benchmarks.bench.compare import missing_fields
from consisti2v_rt.benchmarks.bench.measure import ModelMaker, unet_options
from consisti2v_rt.benchmarks.bench.record import read_record
from consisti2v_rt.benchmarks.bench.tables import split_name
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.home import DEMO_FOLDER
from consisti2v_rt.runtime.bundle.typed_json import MANIFEST_NAME

pytestmark = pytest.mark.slow

QUICK = ("--rounds", "1", "--warmup", "0", "--threads", "1")


def test_steps_of_a_bundle(consisti2v: Callable[..., Any], demo_bundle: Path, tmp_path: Path) -> None:
    points = ("--steps", "3", "--steps", "1", "--steps", "3")
    outcome = consisti2v("bench", "--scaling", demo_bundle, *points, *QUICK, "-o", tmp_path / "s.json")
    assert outcome.code == 0, outcome.stderr
    record = read_record(tmp_path / "s.json")
    (target,) = record.targets
    assert [row.name for row in target.rows] == ["steps 1", "steps 3"]
    assert missing_fields(record) == [] and set(record.bundle["models"].values()) == {record.bundle["sha256"]}
    assert all(len(row.seconds) == 1 for row in target.rows)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch, demo_bundle: Path) -> list[list[str]]:
    """The arguments of every export; each gives a bundle that is there, named as if it were of these weights."""
    asked: list[list[str]] = []

    def export(maker: ModelMaker, folder: Path, arguments: list[str]) -> None:
        asked.append(arguments)
        weights = arguments[arguments.index("--random-weights") + 1]
        name = weights if weights in ("tiny", "full") else Path(weights).name
        # The demo's own U-Net has an open batch, this folder's a fixed one.
        source = DEMO_FOLDER if "any" in arguments else demo_bundle
        shutil.copytree(source, folder, dirs_exist_ok=True)
        manifest = Bundle.open(source, verify=False).manifest
        config = manifest.model.unet_config | unet_options(weights)
        model = replace(manifest.model, unet_config=config, rows=None if "any" in arguments else 2)
        provenance = replace(manifest.provenance, source=f"random weights ({name}), seed 0")
        text = replace(manifest, model=model, provenance=provenance).to_json()
        (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")

    monkeypatch.setattr(ModelMaker, "_export", export)
    return asked


@pytest.mark.rare
def test_frames_need_an_export_each_and_the_other_axes_one(
    consisti2v: Callable[..., Any], exports: list[list[str]], tmp_path: Path
) -> None:
    """The stand-in has 16 frames whatever it is asked for: it is the exports that count, and the names."""
    points = ("--frames", "16", "--steps", "1", "--steps", "2")
    command = ("bench", "scaling", *points, *QUICK, "--models", tmp_path / "models", "-o", tmp_path / "s.json")
    outcome = consisti2v(*command)
    assert outcome.code == 0, outcome.stderr
    assert [row.name for row in read_record(tmp_path / "s.json").targets[0].rows] == [
        "frames 16",
        "steps 1",
        "steps 2",
    ]
    (base, flags, frames) = (exports[0], exports[1][2:4], json.loads(Path(exports[1][1]).read_text()))
    assert len(exports) == 2 and "any" in base and "--dynamic" not in base
    assert flags == ["--guidance", "text"] and frames == {**unet_options("tiny"), "n_frames": 16}
    assert consisti2v(*command).code == 0
    assert len(exports) == 2, "the models are found again"


def test_models_kept_for_other_options_are_made_anew(exports: list[list[str]], tmp_path: Path) -> None:
    maker = ModelMaker(str(tmp_path / "own.json"), tmp_path / "models")
    for options, made in (({"n_temp_heads": 2}, 1), ({"n_temp_heads": 2}, 1), ({"n_temp_heads": 4}, 2)):
        (tmp_path / "own.json").write_text(json.dumps(options))
        maker.check()
        assert maker.open_model(sizes=False).manifest.model.unet_config["n_temp_heads"] == options["n_temp_heads"]
        assert len(exports) == made
    maker.open_model(sizes=True)
    assert len(exports) == 3 and "--dynamic" in exports[2]


def test_an_export_that_fails_says_why(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "own.json").write_text(json.dumps({"n_frames": 0}))
    maker = ModelMaker(str(tmp_path / "own.json"), tmp_path)
    maker.check()
    with pytest.raises(UserError, match=r"own-open-batch could not be exported \(.+\): mend that"):
        maker.open_model(sizes=False)


def test_refusals(consisti2v: Callable[..., Any], demo_bundle: Path, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "s.json")
    for arguments, words in (
        ([demo_bundle, "--frames", "8"], "built for one number of frames"),
        ([demo_bundle, "--batch", "3"], "--guidance any"),
        ([demo_bundle, "--resolution", "128"], "--dynamic"),
        ([demo_bundle, "--steps", "1", "--models", tmp_path], "without BUNDLE"),
        (["--random-weights", "none.json", "--steps", "1"], "none.json does not exist"),
    ):
        assert words in consisti2v("bench", "scaling", *arguments, *output).refusal()
    assert list(tmp_path.iterdir()) == []


def test_names_of_points() -> None:
    assert split_name("resolution 128") == ("resolution", 128)
