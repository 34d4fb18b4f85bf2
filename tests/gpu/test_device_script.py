"""``benchmarks/device.sh``: every part is recorded as ran or refused with its words, whatever the others did."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from consisti2v_rt.benchmarks.device import __main__ as script
from consisti2v_rt.benchmarks.device import calibrated, parity, videos
from consisti2v_rt.benchmarks.device.engines import bundle_copy, forget_target, target_here
from consisti2v_rt.benchmarks.device.inspection import engines_here, layer_summary
from consisti2v_rt.benchmarks.device.parity import run_session, stage_parity
from consisti2v_rt.benchmarks.device.record import Record
from consisti2v_rt.benchmarks.device.stripped import FACTOR, scale_last_product
from consisti2v_rt.errors import UserError
from consisti2v_rt.runtime import backends
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.manifest import EngineSpec, FileRecord
from consisti2v_rt.runtime.gpu.device import probe
from consisti2v_rt.runtime.session import OnnxCpuSession

ROOT = Path(__file__).parents[2]


def refuse() -> None:
    raise UserError("compute capability 9.0 is not supported.")


def fail() -> None:
    raise RuntimeError("the driver went away")


def late() -> None:
    raise subprocess.TimeoutExpired(["python"], 30)


def test_the_record_says_what_became_of_every_part(tmp_path):
    path = tmp_path / "device.json"
    record = Record(path, 60)
    assert [record.part(*each) for each in (("one", lambda: 5), ("two", refuse), ("three", fail), ("four", late))] == [
        5,
        *[None] * 3,
    ]
    held = json.loads(path.read_text())
    assert {name: entry["status"] for name, entry in held.items()} == {
        "one": "ran",
        "two": "refused",
        "three": "failed",
        "four": "failed",
    }
    assert held["two"]["reason"] == "compute capability 9.0 is not supported."
    assert held["three"]["reason"] == "RuntimeError: the driver went away" and "in fail" in held["three"]["traceback"]
    assert held["four"]["reason"] == "stopped after 30 s"
    assert record.without_result() == {"two": "refused", "three": "failed", "four": "failed"}
    ended = Record(tmp_path / "late.json", -1)
    assert ended.part("five", fail) is None and ended.parts["five"]["status"] == "skipped"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["device.json", "late.json"]


def test_a_run_goes_on_where_the_last_one_ended(tmp_path):
    path = tmp_path / "device.json"
    first = Record(path, 60)
    first.part("one", lambda: 5)
    first.part("two", refuse)
    first.part("three", fail)
    second = Record(path, 60, resume=True)
    assert second.part("one", fail) == 5 and second.part("two", fail) is None
    assert second.part("three", lambda: 7) == 7, "what failed is tried again"
    assert second.part("one", lambda: 6, again=True) == 6
    assert second.without_result() == {"two": "refused"}
    assert Record(path, 60).parts == {}
    path.write_text('{"one": 1}')
    with pytest.raises(UserError, match="is no record of a device run"):
        Record(path, 60, resume=True)


@pytest.mark.skipif(probe().found, reason="this machine has a GPU: pytest -m gpu is the test there")
def test_without_a_gpu_every_part_says_why(demo_bundle, tmp_path):
    """The script itself, in processes; what is left out here takes long to say no."""
    output = tmp_path / "device.json"
    command = [sys.executable, "-m", "consisti2v_rt.benchmarks.device", "--bundle", str(demo_bundle)]
    asked = ["machine", "parity", "video", "device noise", "inspector", "compare", "stripped", "calibrated"]
    done = subprocess.run(
        [*command, "--output", str(output), "--work", str(tmp_path / "work"), "--only", *asked],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 1 and done.stderr == "", done.stderr
    parts = json.loads(output.read_text())
    ran = {name for name, entry in parts.items() if entry["status"] == "ran"}
    assert ran == {"machine", "copy"}
    assert parts["machine"]["result"]["gpu"]["found"] is False
    refused = {name: entry["reason"] for name, entry in parts.items() if entry["status"] == "refused"}
    assert (
        refused.keys() | ran
        == parts.keys()
        == {
            *("machine", "copy", "choices", "parity", "video", "device noise", "inspector", "compare", "stripped"),
            *("calibrated int8", "calibrated fp8"),
        }
    )
    assert all(reason.endswith(".") and "Traceback" not in reason for reason in refused.values()), refused
    assert "stripped: refused" in done.stdout and "11 parts, 9 without a result" in done.stdout


def test_the_parts_that_run_other_programs(tmp_path, monkeypatch):
    """A refusal is code 2 and a sentence; anything else that goes wrong is a failure; skipped tests are no success."""
    record = Record(tmp_path / "device.json", 60)
    answers: list[tuple[int, str, str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, *answers.pop(0))

    monkeypatch.setattr(script.subprocess, "run", run)
    answers[:] = [(2, "", "warning\nerror: There is no GPU here.\n"), (1, "", "Segmentation fault")]
    with pytest.raises(UserError, match=r"^There is no GPU here\.$"):
        script._command(["module"], tmp_path, record)
    with pytest.raises(RuntimeError, match="exit code 1: Segmentation fault"):
        script._command(["module"], tmp_path, record)
    answers[:] = [(0, "25 skipped in 3 s", ""), (1, "1 failed, 20 passed", ""), (0, "21 passed in 3 s", "")]
    with pytest.raises(UserError, match="every test was skipped"):
        script._tests(ROOT, record)
    with pytest.raises(RuntimeError, match="1 failed"):
        script._tests(ROOT, record)
    assert script._tests(ROOT, record)["tail"] == "21 passed in 3 s"
    with pytest.raises(UserError, match="has no tests"):
        script._tests(tmp_path, record)


def test_parts_run_no_file_of_the_working_directory(tmp_path, demo_bundle, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "random.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    record = Record(tmp_path / "device.json", 60)
    found = script._in_process("machine", demo_bundle, {}, tmp_path / "work", record)
    assert "numpy" in found["packages"] and not (tmp_path / "was_run").exists()


def test_parity_of_every_stage_on_three_seeds(fake_cuda, demo_bundle):
    """The stand-in computes in ONNX Runtime too: what it takes and gives is what the graph does."""
    errors = stage_parity(demo_bundle, backends.BACKENDS[0], "fp32", ["conditioning", "unet"])
    assert set(errors) == {f"{stage} seed {s}" for stage in ("conditioning batch 1", "unet batch 2") for s in (0, 1, 2)}
    assert max(errors.values()) < 1e-5


def test_an_open_batch_is_compared_at_every_guidance_batch(fake_cuda):
    errors = stage_parity(ROOT / "assets" / "demo_bundle", backends.BACKENDS[0], "fp32", ["unet"])
    assert set(errors) == {f"unet batch {rows} seed {seed}" for rows in (1, 2, 3) for seed in (0, 1, 2)}
    assert max(errors.values()) < 1e-5


def test_low_vram_and_device_noise(fake_cuda, demo_bundle, monkeypatch):
    monkeypatch.setattr(videos, "BACKENDS", backends.BACKENDS)
    report = videos.compare_video(demo_bundle, "stand-in", "fp32", low_vram=True, steps=2, rounds=1)
    assert report["psnr_db"] > 60 and report["latents_relative_l2"] < 2e-5
    noise = videos.device_noise(demo_bundle, "stand-in", "fp32", steps=1)
    assert noise["repeats"] and noise["relative_l2_of_another_seed"] > 0.1
    assert noise["relative_l2_of_noise_from_the_host"] > 0.1
    monkeypatch.setattr(videos, "relative_l2", lambda *_: 0.0)
    with pytest.raises(RuntimeError, match="does not follow its seed"):
        videos.device_noise(demo_bundle, "stand-in", "fp32", steps=1)


def test_weights_are_changed_in_the_graph_and_said_so(demo_bundle, tmp_path, relative_l2):
    """Half the weights of the last product: half its output, but for the bias; the bundle stays whole."""
    pytest.importorskip("onnx")
    copy = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    outputs = []
    for path in (demo_bundle, copy):
        bundle = Bundle.open(path, verify=False)
        if path == copy:
            assert "conv_out" in scale_last_product(copy, "fp32")
            Bundle.open(copy, verify=True)
        spec = bundle.manifest.stages["unet"]
        session = OnnxCpuSession(bundle.file(spec.file), spec)
        case = next(parity.Cases(bundle).of("unet"))
        outputs.append(run_session(session, case.inputs)["noise_pred"])
    whole, half = (values - values.mean(axis=(2, 3, 4), keepdims=True) for values in outputs)
    assert relative_l2(half, FACTOR * whole) < 1e-5


def test_what_a_calibrated_graph_lost_is_read_from_the_bundle(demo_bundle, tmp_path):
    copy = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    manifest = json.loads((copy / "bundle.json").read_text())
    graph = dict(manifest["stages"]["unet"], precision="int8")
    graph["calibration"] = {"name": "demo", "sha256": "0" * 64, "samples": 6, "steps": 8}
    manifest["variants"] = {"int8": {"unet": graph}}
    (copy / "bundle.json").write_text(json.dumps(manifest))
    (copy / "variants" / "int8").mkdir(parents=True)
    losses = [{"seed": 0, "rows": 2, "relative_l2": 0.038}]
    entry = {"graph": {"quantised_activations": 77}, "losses": losses}
    (copy / "variants" / "int8" / "losses.json").write_text(json.dumps({"stages": {"unet": entry}}))
    expected = {"calibrated_on": "demo", "quantised_activations": 77, "losses": losses}
    assert calibrated.graph_losses(copy, "int8") == expected


def test_engines_for_this_card_or_the_portable_ones(demo_bundle):
    manifest = Bundle.open(demo_bundle, verify=False).manifest

    def with_engines(*targets: str) -> Any:
        specs = [
            EngineSpec("unet", f"engines/{t}/unet.plan", t, "tensorrt-rtx", "1", "fp16", ("8.9",), "0" * 64, (), ())
            for t in targets
        ]
        return SimpleNamespace(manifest=dataclasses.replace(manifest, engines=tuple(specs)))

    assert target_here(with_engines()) == target_here(with_engines("rtx", "current")) == "current"
    assert target_here(with_engines("sm80", "rtx")) == "rtx"
    assert [engine.target for engine in engines_here(with_engines("sm80", "rtx"))] == ["rtx"]
    with pytest.raises(UserError, match="there is no int8 engine for this card"):
        engines_here(with_engines("rtx"), "int8")


def test_layers_of_the_inspector():
    verbose = {"Name": "conv + act", "LayerType": "CaskConvolution", "TacticName": "sm89_xmma", "Inputs": [{}] * 3}
    summary = layer_summary({"Layers": [verbose, "a name alone"]})
    assert summary["count"] == 2 and summary["kinds"] == {"CaskConvolution": 1, "unknown": 1}
    assert summary["layers"][0] == {key: verbose[key] for key in ("Name", "LayerType", "TacticName")}
    assert summary["layers"][1] == {"Name": "a name alone"}


def test_a_copy_is_kept_until_the_bundle_is_another(demo_bundle, tmp_path):
    source = Path(shutil.copytree(demo_bundle, tmp_path / "from" / "bundle"))
    copy = bundle_copy(source, tmp_path / "to")
    (copy / "engines").mkdir()
    assert bundle_copy(source, tmp_path / "to") == copy and (copy / "engines").exists()
    text = (source / "bundle.json").read_text()
    digest = Bundle.open(source).manifest.files["unet/unet.onnx"].sha256
    (source / "bundle.json").write_text(text.replace(digest, "0" * 64))
    bundle_copy(source, tmp_path / "to")
    assert not (copy / "engines").exists() and len(list(copy.rglob("*.onnx"))) == 5


def test_engines_that_this_card_refuses_are_not_chosen_again(demo_bundle, tmp_path):
    copy = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    manifest = Bundle.open(copy, verify=False).manifest
    specs = [
        EngineSpec("unet", f"engines/{t}/unet.plan", t, "tensorrt-rtx", "1", "fp16", ("8.9",), "0" * 64, (), ())
        for t in ("rtx", "current")
    ]
    files = manifest.files | {spec.file: FileRecord("0" * 64, 4) for spec in specs}
    for spec in specs:
        (copy / spec.file).parent.mkdir(parents=True)
        (copy / spec.file).write_bytes(b"plan")
    (copy / "bundle.json").write_text(dataclasses.replace(manifest, engines=tuple(specs), files=files).to_json())
    forget_target(copy, "rtx")
    assert [engine.target for engine in Bundle.open(copy, verify=False).manifest.engines] == ["current"]


def test_device_noise_runs_where_a_video_was_made(tmp_path):
    record = Record(tmp_path / "r.json", 60)
    choices = [["tensorrt-rtx", "fp16"], ["onnxruntime-cuda", "fp32"]]
    record.part("video tensorrt-rtx fp16 with graph", lambda: 1 / 0)
    assert script._with_videos(choices, record)[0] == choices[0]
    record.part("video onnxruntime-cuda fp32 with graph", lambda: {"psnr_db": 40})
    assert script._with_videos(choices, record)[0] == choices[1]
