"""The yardstick of presets, the search for them and their place in a bundle, on a model whose solution is known."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from consisti2v_rt import ImageToVideo, UserError
from consisti2v_rt.benchmarks.quality import tuning
from consisti2v_rt.benchmarks.quality.converged import CONVERGED_STEPS, EXACT, GUIDANCES, Case, Way, Yardstick, distance
from consisti2v_rt.benchmarks.quality.preset_report import measured
from consisti2v_rt.benchmarks.quality.timesteps import SPACINGS, optimal_timesteps, spaced_timesteps
from consisti2v_rt.kernels.ddim import SchedulerConfig, alphas_cumprod
from consisti2v_rt.kernels.sampler import sampler_step
from consisti2v_rt.kernels.schedulers import step_table
from consisti2v_rt.locations import ROOT
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.tuned import TUNED, tuned_text
from consisti2v_rt.runtime.request.presets import PRESETS
from consisti2v_rt.runtime.request.settings import GenerationSettings
from consisti2v_rt.serve.models import Model

CONFIG = SchedulerConfig()
VARIANCES = np.array([0.01, 0.1, 1.0, 4.0], np.float32)[None, :, None, None, None]


class GaussianModel:
    """Clean latents N(0, v), v of each channel: the best prediction and the trajectory are known in closed form.

    ``guidance`` multiplies the prediction's distance from one of v = 1, so that it matters.
    """

    def __init__(self, variances=VARIANCES) -> None:
        self.variances = variances
        manifest = SimpleNamespace(scheduler={}, stages={"unet": SimpleNamespace(file="unet")}, files={})
        self.bundle = SimpleNamespace(manifest=manifest, digest="d")
        self.backend = SimpleNamespace(backend=SimpleNamespace(name="formula"), precision="fp32")
        self.evaluations = 0

    def noise(self, seed):
        return np.random.default_rng(seed).standard_normal((1, 4, 3, 2, 2)).astype(np.float32)

    def solution(self, seed, timestep):
        """From the timestep's level to the clean sample, by the ratio of standard deviations."""
        abar = float(alphas_cumprod(CONFIG)[timestep])
        return self.noise(seed)[:, :, 1:] * np.sqrt(self.variances / (abar * self.variances + 1 - abar))

    def __call__(self, photo, prompt, *, seed, guidance_scale_txt, callback=None, **options):
        options.pop("guidance_interval")
        steps, timesteps = options.pop("num_inference_steps"), options.pop("timesteps")
        table = step_table(options.pop("scheduler"), CONFIG, steps, timesteps=timesteps)
        assert not options
        noise = self.noise(seed)
        state = table.start(noise[:, :, 1:])
        abar = alphas_cumprod(CONFIG).astype(np.float64)
        for timestep, matrix in zip(table.timesteps, table.matrices, strict=True):
            self.evaluations += 1
            a = abar[timestep]
            variances = self.variances ** (1 + 0.1 * (guidance_scale_txt - 1))
            prediction = np.sqrt(1 - a) * state[0] / (a * variances + 1 - a)
            state = sampler_step(state, prediction.astype(np.float32), matrix)
            if callback is not None:
                callback(SimpleNamespace(latents=state[0]))
        latents = np.concatenate([noise[:, :, :1], state[0]], axis=2)
        frames = np.clip(latents[0, :3].transpose(1, 2, 3, 0) * 40 + 128, 0, 255).astype(np.uint8)
        return SimpleNamespace(latents=latents, frames=frames[None])


@pytest.fixture
def cases(tmp_path) -> list[Case]:
    for name in "abcd":
        (tmp_path / name).write_bytes(name.encode())
    return [Case(tmp_path / name, "", seed) for name in "abcd" for seed in (0, 1)]


def test_the_reference_is_the_solution(tmp_path, cases):
    model = GaussianModel()
    yardstick = Yardstick(model, tmp_path / "work")
    converged_latents = yardstick._video(yardstick.converged, cases[0], 1.0)["latents"]
    frame = model.noise(0)[:, :, :1]
    true = np.concatenate([frame, model.solution(0, yardstick.converged.timesteps[0])], axis=2)
    error = yardstick.score(EXACT, cases[0], 1.0).error
    assert distance(converged_latents, true) < 0.1 * error, "what is left is the schedule's lowest noise level"
    more = replace(yardstick.converged, name="more", steps=300, timesteps=None)
    more = replace(more, timesteps=spaced_timesteps("exponential", CONFIG, 300))
    assert yardstick.score(more, cases[0], 1.0).error < 0.02 * error


def test_timesteps_of_known_trajectories_leave_them_less(tmp_path, cases):
    """Calibrated on one photo's noise, shown on another's: nearer than every spacing with as many steps."""
    yardstick = Yardstick(GaussianModel(np.float32(1.0)), tmp_path)
    trajectories = [yardstick.trajectory(cases[0], guidance) for guidance in GUIDANCES]
    best = optimal_timesteps(trajectories, CONFIG, 10)
    assert len(best) == 10 and best[0] == 999 and list(best) == sorted(set(best), reverse=True)
    other = [case for case in cases if case.seed == 1][:1]
    optimal = yardstick.worst(Way("optimal", "dpmpp_2m", 10, best), other)
    for spacing in SPACINGS:
        timesteps = spaced_timesteps(spacing, CONFIG, 10)
        assert list(timesteps) == sorted(set(timesteps), reverse=True) and len(timesteps) == 10
        assert optimal < 0.7 * yardstick.worst(Way(spacing, "dpmpp_2m", 10, timesteps), other), spacing


def test_a_search_finds_presets_and_goes_on_from_what_it_has(tmp_path, cases):
    model, told = GaussianModel(), []
    yardstick = Yardstick(model, tmp_path / "work")
    found = tuning.find_presets(yardstick, cases, lambda text, total: told.append(text))
    assert list(found) == ["fast", "balanced"] and found["fast"].steps <= found["balanced"].steps < 50
    judged = tuning.split(cases)[1]
    assert {case.image.name for case in judged} == set("bcd"), "the first photo calibrates"
    for name, way in found.items():
        assert yardstick.worst(way, judged) <= tuning.RULE[name]
    assert told[0] == "converged trajectories" and told[-1] == f"{found['balanced'].steps} steps"
    evaluations = model.evaluations
    again = tuning.find_presets(Yardstick(model, tmp_path / "work"), cases, lambda text, total: None)
    assert again == found and model.evaluations == evaluations, "all of it was on disk"

    summaries = measured(yardstick, list(found.values()), judged)
    assert all(summary.interval is not None for summary in summaries), "six cases"
    assert [s.ratio for s in summaries if s.way == EXACT] == [1.0, 1.0]
    assert yardstick.seed_distance(judged, 1.0) > 0.5


def test_a_damaged_file_is_named_and_a_torn_score_measured_again(tmp_path, cases):
    work = tmp_path / "work"
    first = Yardstick(GaussianModel(), work).score(EXACT, cases[0], 1.0)
    (score,) = work.glob("*.json")
    score.write_text("{}")
    assert Yardstick(GaussianModel(), work).score(EXACT, cases[0], 1.0) == first
    for file in work.glob("*.npz"):
        file.write_bytes(b"no archive")
    score.unlink()
    with pytest.raises(UserError, match="cannot be read: delete it"):
        Yardstick(GaussianModel(), work).score(EXACT, cases[0], 1.0)


@pytest.mark.parametrize("model", ["demo_64", "demo_128"])
def test_records_hold_the_presets_of_the_table_to_the_rule(model):
    """A preset that is changed is measured again, on two models that were trained in different ways."""
    record = json.loads((ROOT / "benchmarks" / "results" / f"presets_{model}.json").read_text(encoding="utf-8"))
    assert record["kind"] == "presets" and record["task"]["converged_steps"] == CONVERGED_STEPS
    rows = {(row["name"], row["guidance"]): row for row in record["rows"]}
    assert set(rows) >= {(name, guidance) for name in PRESETS for guidance in GUIDANCES}
    for (name, _), row in rows.items():
        if name in PRESETS:
            assert {key: row[key] for key in PRESETS[name]} == json.loads(json.dumps(PRESETS[name]))
            assert row["timesteps"] is None and row["ratio"] <= {"exact": 1.0, **tuning.RULE}[name]
            assert row["ratio"] == pytest.approx(row["error"] / rows["exact", row["guidance"]]["error"])
    assert PRESETS["fast"]["num_inference_steps"] < PRESETS["balanced"]["num_inference_steps"] < 25


@pytest.fixture
def tunable(tmp_path, demo_bundle):
    """The demo bundle's files, linked hard, with room for presets of its own."""
    return shutil.copytree(demo_bundle, tmp_path / "bundle", copy_function=lambda a, b: shutil.copy2(a, b))


def test_a_bundle_has_its_own_presets(tunable, consisti2v):
    bundle = Bundle.open(tunable, verify=False)
    assert bundle.presets == PRESETS
    unet = Yardstick(SimpleNamespace(bundle=bundle), tunable.parent / "work").unet_sha256
    own = {"scheduler": "deis", "num_inference_steps": 4, "timesteps": [999, 500, 100, 3]}
    own["guidance_interval"] = [0.0, 1.0]
    (tunable / TUNED).write_text(tuned_text(unet, {"fast": own}))
    again = Bundle.open(tunable)
    assert again.digest == bundle.digest, "the manifest does not record it, so every version reads the bundle"
    assert again.presets["exact"] == PRESETS["exact"]

    def resolved(**options):
        settings = GenerationSettings.from_options({"preset": "fast", **options})
        return settings.resolved(again.manifest, again.presets)

    settings = resolved()
    assert (settings.scheduler, settings.num_inference_steps) == ("deis", 4)
    assert settings.timesteps == (999, 500, 100, 3)
    assert resolved(num_inference_steps=7).timesteps is None, "they belong to the preset's own number of steps"
    assert resolved(scheduler="unipc").timesteps is None
    assert resolved(timesteps=[900, 10]).num_inference_steps == 2
    assert "timesteps (999, 500, 100, 3)" in consisti2v("inspect", tunable).stdout
    served = Model.open(str(tunable))
    assert served.resolve("", GenerationSettings.from_options({"preset": "fast"}))[0].timesteps == (999, 500, 100, 3)
    assert served.shown()["presets"]["fast"]["num_inference_steps"] == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"unet_sha256": "0" * 64}, "was made for another U-Net"),
        ({"presets": [1]}, "holds no presets"),
        ({"presets": {"quick": {}}}, "preset 'quick' that is unknown"),
        ({"presets": {"fast": {"scheduler": "heun", "num_inference_steps": 3}}}, "not possible"),
        ({"presets": {"fast": {"scheduler": "ddim", "num_inference_steps": 3, "timesteps": [9, 5]}}}, "3 denoising"),
        ({"presets": {"fast": {"scheduler": "ddim", "num_inference_steps": "3"}}}, "no whole numbers"),
    ],
)
def test_presets_that_are_not_possible_are_refused(tunable, change, said):
    bundle = Bundle.open(tunable, verify=False)
    unet = Yardstick(SimpleNamespace(bundle=bundle), tunable.parent / "work").unet_sha256
    (tunable / TUNED).write_text(json.dumps({"unet_sha256": unet, "presets": {}} | change))
    with pytest.raises(UserError, match=f"{said}.*make it again with 'consisti2v tune', or delete it"):
        _ = bundle.presets


def test_tune_stores_what_it_found_or_leaves_the_bundle_as_it_was(consisti2v, tmp_path, photo, monkeypatch):
    model = GaussianModel()
    model.bundle.path = tmp_path
    monkeypatch.setattr(ImageToVideo, "from_bundle", lambda *args, **options: model)
    photo.resize((16, 16)).save(tmp_path / "photo.png")
    (tmp_path / "photos.csv").write_text("path,prompt\nphoto.png,a cat\n")
    command = ["tune", tmp_path, "--images", tmp_path / "photos.csv", "--work", tmp_path / "work"]
    done = consisti2v(*command)
    assert done.code == 0 and "guidance scale 7.5, 1 case(s)" in done.stdout and TUNED in done.stdout, done.stderr
    stored = (tmp_path / TUNED).read_text()
    presets = json.loads(stored)["presets"]
    assert presets["fast"]["num_inference_steps"] == len(presets["fast"]["timesteps"]) < 50

    monkeypatch.setattr(tuning, "RULE", {"fast": -1.0})
    monkeypatch.setattr(tuning, "EXACT", replace(EXACT, steps=6))
    refused = consisti2v(*command)
    assert refused.code == 2 and "the bundle stays as it was" in refused.stderr
    assert (tmp_path / TUNED).read_text() == stored
