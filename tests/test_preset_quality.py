"""The records of what presets save and lose hold every preset; each is clearly nearer to ``exact`` than a seed."""

from __future__ import annotations

import json

import pytest

from consisti2v_rt.locations import ROOT
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.request.presets import PRESETS

EXACT = "exact"
KEEP_BELOW = 0.5
"""A preset's loss is "clearly smaller than the distance between seeds" below this share of it."""
SAME_LATENTS = "ad9dd600e33c3ea0ac03b5358cd8b0e0ca5f0047ec55a06e1d7eb47f9da1a45e"
"""The demo bundle before its batch was opened: the same weights, its latents equal bit by bit."""


@pytest.mark.parametrize(("name", "guidance"), [("presets_demo", 1.0), ("presets_demo_guided", 7.5)])
def test_the_records_keep_every_preset_of_the_table(name, guidance):
    """A preset that is changed or added is measured again: the demo's own guidance, and the published one."""
    record = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert record["task"]["guidance_scale"] == guidance and record["keep_below"] == KEEP_BELOW
    assert record["bundle"]["sha256"] in (
        SAME_LATENTS,
        Bundle.open(ROOT / "assets" / "demo_bundle", verify=False).digest,
    )
    measured = {entry["name"]: entry for entry in record["outcomes"] if entry["is_preset"]}
    assert {name: entry["options"] for name, entry in measured.items()} == json.loads(json.dumps(PRESETS))
    most = KEEP_BELOW * record["another_seed"]["latent_relative_l2"]
    for entry in measured.values():
        assert entry["kept"] and entry["distance"]["latent_relative_l2"] <= most
    exact = measured.pop(EXACT)
    assert measured and all(entry["row_forwards"] <= 0.75 * exact["row_forwards"] for entry in measured.values())
