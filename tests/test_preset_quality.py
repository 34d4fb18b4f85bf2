"""The comparison of presets: distances, verdicts, and the command on the demo bundle."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("psutil")

from consisti2v_rt.benchmarks import preset_quality
from consisti2v_rt.benchmarks.bench.bundle_facts import bundle_facts, open_bundle
from consisti2v_rt.benchmarks.preset_quality import EXACT, FINE, KEEP_BELOW, distance, is_kept, quality, variants
from consisti2v_rt.locations import ASSETS
from consisti2v_rt.runtime.request.presets import PRESETS
from consisti2v_rt.runtime.request.settings import GenerationSettings

RESULTS = Path(preset_quality.__file__).parent / "results"
OTHER_SEED = {"latent_relative_l2": 1.0, "psnr": 15.0}
TWO_STEPS = {**PRESETS[EXACT], "num_inference_steps": 2}
SMALL = {
    EXACT: TWO_STEPS,
    FINE: {**TWO_STEPS, "num_inference_steps": 3},
    "balanced": {**TWO_STEPS, "scheduler": "unipc"},
    "half guided": {**TWO_STEPS, "guidance_interval": (0.0, 0.5)},
}


def test_the_photo_itself_does_not_count():
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, 4, 3, 2, 2)).astype(np.float32)
    frames = rng.integers(0, 255, (2, 3, 16, 16, 3), np.uint8)
    moved, changed = latents.copy(), frames.copy()
    moved[:, :, 0] += 1
    changed[:, 0] = 0
    exact, other = (SimpleNamespace(latents=a, frames=b) for a, b in ((latents, frames), (moved, changed)))
    assert distance(other, exact) == {"latent_relative_l2": 0.0, "psnr": "infinite"}
    moved[:, :, 1:] *= 1.5
    assert distance(other, exact)["latent_relative_l2"] == pytest.approx(0.5)


def test_a_preset_is_kept_where_it_is_clearly_closer_than_another_seed():
    for loss, decibels, kept in ((0.4, 25.0, True), (0.6, 25.0, False), (0.4, 14.0, False), (0.0, "infinite", True)):
        assert is_kept({"latent_relative_l2": loss, "psnr": decibels}, OTHER_SEED) is kept


def test_every_variant_is_a_possible_setting():
    found = variants(True)
    assert next(iter(found)) == EXACT and set(PRESETS) <= set(found)
    manifest = open_bundle(ASSETS / "demo_bundle").manifest
    exact = GenerationSettings().resolved(manifest)
    for name, options in found.items():
        assert (GenerationSettings.from_options(options).resolved(manifest) == exact) == (name == EXACT)
    assert set(found) - set(variants(False)) == {"guidance interval 0:0.8", "guidance interval 0.2:0.8"}


SAME_LATENTS = "ad9dd600e33c3ea0ac03b5358cd8b0e0ca5f0047ec55a06e1d7eb47f9da1a45e"
"""The demo bundle before its batch was opened: the same weights, its latents equal bit by bit."""


@pytest.mark.parametrize(("name", "guidance"), [("presets_demo", 1.0), ("presets_demo_guided", 7.5)])
def test_the_records_keep_every_preset_of_the_table(name, guidance):
    """A preset that is changed or added is measured again: the demo's own guidance, and the published one."""
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    assert record["task"]["guidance_scale"] == guidance and record["keep_below"] == KEEP_BELOW
    assert record["bundle"]["sha256"] in (SAME_LATENTS, bundle_facts(open_bundle(ASSETS / "demo_bundle"))["sha256"])
    measured = {entry["name"]: entry for entry in record["outcomes"] if entry["is_preset"]}
    assert {name: entry["options"] for name, entry in measured.items()} == json.loads(json.dumps(PRESETS))
    most = KEEP_BELOW * record["another_seed"]["latent_relative_l2"]
    for entry in measured.values():
        assert entry["kept"] and entry["distance"]["latent_relative_l2"] <= most
    exact = measured.pop(EXACT)
    assert measured and all(entry["row_forwards"] <= 0.75 * exact["row_forwards"] for entry in measured.values())


@pytest.mark.parametrize(
    ("bundle", "guided"), [(ASSETS / "demo_bundle", False), (Path(__file__).parent / "data" / "untrained_bundle", True)]
)
def test_a_bundle_is_judged_at_the_guidance_that_it_recommends(monkeypatch, bundle, guided):
    def stop(found: bool) -> None:
        assert found == guided
        raise InterruptedError

    monkeypatch.setattr(preset_quality, "variants", stop)
    with pytest.raises(InterruptedError):
        quality(bundle)


def test_the_command_compares_at_the_same_noise(monkeypatch, capsys, demo_bundle, photo, tmp_path):
    monkeypatch.setattr(preset_quality, "MEASURES", ("temporal_flickering", "subject_consistency"))
    monkeypatch.setattr(preset_quality, "variants", lambda guided: SMALL if guided else pytest.fail("guided at 3"))
    options = {"prompt": ["zoom in", "pan left"], "seed": 0, "guidance_scale": 3.0, "device": "cpu", "threads": 1}
    quality(demo_bundle, image=[photo, photo], output=tmp_path / "presets.json", **options)
    record = json.loads((tmp_path / "presets.json").read_text())
    outcomes = {entry["name"]: entry for entry in record["outcomes"]}
    assert outcomes[EXACT]["distance"] == {"latent_relative_l2": 0.0, "psnr": "infinite"}
    for name in ("balanced", "half guided"):
        assert outcomes[name]["distance"]["latent_relative_l2"] > 0 and outcomes[name]["distance"]["psnr"] < 100
    assert record["another_seed"]["latent_relative_l2"] > 0.01
    assert outcomes[EXACT]["fine_relative_l2"] == pytest.approx(
        outcomes[FINE]["distance"]["latent_relative_l2"], rel=0.2
    )
    assert outcomes[FINE]["fine_relative_l2"] == 0
    shown = capsys.readouterr().out
    assert "another seed" in shown and "preset balanced:" in shown
    assert record["task"]["guidance_scale"] == 3 and record["task"]["images"] == [photo.name] * 2
    assert outcomes[EXACT]["row_forwards"] == 8 and "temporal_flickering" in outcomes[EXACT]["measures"]
    assert "subject_consistency" in record["unavailable"]
    assert [sentence.split(":")[0] for sentence in record["verdicts"]] == ["preset balanced"]
