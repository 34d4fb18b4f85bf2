"""The comparison of presets: distances, verdicts, and the command on the demo bundle."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("psutil")

from consisti2v_rt.benchmarks.bench.bundle_facts import bundle_facts, open_bundle
from consisti2v_rt.benchmarks.preset_quality import command, measurement, variants
from consisti2v_rt.benchmarks.preset_quality.outcome import (
    KEEP_BELOW,
    Distance,
    Outcome,
    distance,
    is_kept,
    verdicts,
)
from consisti2v_rt.benchmarks.preset_quality.variants import EXACT, FINE, Variant, all_variants
from consisti2v_rt.runtime.request.presets import PRESETS
from consisti2v_rt.runtime.request.settings import GenerationSettings

RESULTS = Path(command.__file__).parents[1] / "results"
OTHER_SEED = Distance(1.0, 15.0)
TWO_STEPS = {**PRESETS[EXACT], "num_inference_steps": 2}
SMALL = [
    Variant(EXACT, TWO_STEPS, True),
    Variant(FINE, {**TWO_STEPS, "num_inference_steps": 3}, False),
    Variant("fast", {**TWO_STEPS, "scheduler": "unipc"}, True),
    Variant("the same as exact", dict(TWO_STEPS), False),
    Variant("half guided", {**TWO_STEPS, "guidance_interval": (0.0, 0.5)}, False),
]


def outcome(l2: float, psnr: float) -> Outcome:
    return Outcome("fast", {}, True, 1.0, 1.0, 10, Distance(l2, psnr))


def test_the_photo_itself_does_not_count():
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 4, 3, 2, 2)).astype(np.float32)
    frames = rng.integers(0, 255, (2, 3, 16, 16, 3), np.uint8)
    moved, changed = latents.copy(), frames.copy()
    moved[:, :, 0] += 1
    changed[:, 0] = 0
    assert distance(moved, changed, latents, frames) == Distance(0.0, math.inf)
    moved[:, :, 1:] *= 1.5
    assert distance(moved, changed, latents, frames).latent_relative_l2 == pytest.approx(0.5)


def test_a_preset_is_kept_where_it_is_clearly_closer_than_another_seed():
    assert is_kept(outcome(0.4, 25.0), OTHER_SEED)
    assert not is_kept(outcome(0.6, 25.0), OTHER_SEED)
    assert not is_kept(outcome(0.4, 14.0), OTHER_SEED)
    assert "preset fast: keep; its distance from exact is 40%" in verdicts([outcome(0.4, 25.0)], OTHER_SEED)[0]
    assert "preset fast: drop" in verdicts([outcome(0.6, 25.0)], OTHER_SEED)[0]
    assert verdicts([outcome(0.0, math.inf)], OTHER_SEED) == []


def test_every_variant_is_a_possible_setting():
    found = all_variants()
    assert found[0].name == EXACT and [v.name for v in found if v.is_preset] == list(PRESETS)
    assert len({v.name for v in found}) == len(found)
    manifest = open_bundle(command.DEMO_BUNDLE).manifest
    exact = GenerationSettings().resolved(manifest)
    for variant in found:
        settings = GenerationSettings.from_options(variant.options).resolved(manifest)
        assert (settings == exact) == (variant.name == EXACT)
    unguided = all_variants(guided=False)
    assert [v.name for v in found if v not in unguided] == ["guidance interval 0:0.8", "guidance interval 0.2:0.8"]


SAME_LATENTS = "ad9dd600e33c3ea0ac03b5358cd8b0e0ca5f0047ec55a06e1d7eb47f9da1a45e"
"""The demo bundle before its batch was opened: the same weights, its latents equal bit by bit."""


@pytest.mark.parametrize(("name", "guidance"), [("presets_demo", 1.0), ("presets_demo_guided", 7.5)])
def test_the_records_keep_every_preset_of_the_table(name, guidance):
    """A preset that is changed or added is measured again: the demo's own guidance, and the published one."""
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert record["task"]["guidance_scale"] == guidance and record["keep_below"] == KEEP_BELOW
    assert record["bundle"]["sha256"] in (SAME_LATENTS, bundle_facts(open_bundle(command.DEMO_BUNDLE))["sha256"])
    measured = {entry["name"]: entry for entry in record["outcomes"] if entry["is_preset"]}
    assert {name: entry["options"] for name, entry in measured.items()} == json.loads(json.dumps(PRESETS))
    most = KEEP_BELOW * record["another_seed"]["latent_relative_l2"]
    for entry in measured.values():
        assert entry["kept"] and entry["distance"]["latent_relative_l2"] <= most
    exact = measured.pop(EXACT)
    assert measured and all(entry["row_forwards"] <= 0.75 * exact["row_forwards"] for entry in measured.values())


@pytest.mark.parametrize(
    ("bundle", "guided"), [(command.DEMO_BUNDLE, False), (Path(__file__).parent / "data" / "untrained_bundle", True)]
)
def test_a_bundle_is_judged_at_the_guidance_that_it_recommends(monkeypatch, bundle, guided):
    def all_variants(found: bool) -> None:
        assert found == guided
        raise InterruptedError

    monkeypatch.setattr(variants, "all_variants", all_variants)
    with pytest.raises(InterruptedError):
        command.quality(bundle)


def test_the_command_compares_at_the_same_noise(monkeypatch, capsys, demo_bundle, photo, tmp_path):
    monkeypatch.setattr(measurement, "MEASURES", ("temporal_flickering", "subject_consistency"))
    monkeypatch.setattr(measurement, "_published_seconds", lambda *arguments: 1000.0)
    monkeypatch.setattr(variants, "all_variants", lambda guided: SMALL if guided else pytest.fail("guided at 3"))
    assert measurement.steps_to_run(SMALL) == 11
    options = {"prompt": ["zoom in", "pan left"], "seed": 0, "guidance_scale": 3.0, "device": "cpu", "threads": 1}
    command.quality(demo_bundle, image=[photo, photo], output=tmp_path / "presets.json", **options)
    record = json.loads((tmp_path / "presets.json").read_text())
    outcomes = {entry["name"]: entry for entry in record["outcomes"]}
    assert outcomes[EXACT]["distance"] == {"latent_relative_l2": 0.0, "psnr": "infinite"}
    assert outcomes["the same as exact"]["seconds"] == outcomes[EXACT]["seconds"], "equal settings run once"
    for name in ("fast", "half guided"):
        assert outcomes[name]["distance"]["latent_relative_l2"] > 0 and outcomes[name]["distance"]["psnr"] < 100
    assert record["another_seed"]["latent_relative_l2"] > 0.01
    assert outcomes[EXACT]["fine_relative_l2"] == pytest.approx(
        outcomes[FINE]["distance"]["latent_relative_l2"], rel=0.2
    )
    assert outcomes[FINE]["fine_relative_l2"] == 0
    shown = capsys.readouterr().out
    assert "another seed" in shown and "preset fast:" in shown
    assert record["task"]["guidance_scale"] == 3 and record["task"]["images"] == [photo.name] * 2
    assert outcomes[EXACT]["row_forwards"] == 8 and "temporal_flickering" in outcomes[EXACT]["measures"]
    assert "subject_consistency" in record["unavailable"]
    assert outcomes["fast"]["speed_up_unet"] == pytest.approx(1000 / outcomes["fast"]["unet_seconds"])
    assert [sentence.split(":")[0] for sentence in record["verdicts"]] == ["preset fast"]
