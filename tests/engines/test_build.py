"""Real builds for a GPU that is not here: what comes out, what is refused, and what a stopped build leaves."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt import UserError
from consisti2v_rt.export import bundle_parts
from consisti2v_rt.export.engines import attention, bundle_engines, job, kernels, process
from consisti2v_rt.export.engines.bundle_engines import build_engines
from consisti2v_rt.export.engines.libraries import find_engine_backend, load_library
from consisti2v_rt.export.engines.plan import PlanRequest, build_plan
from consisti2v_rt.export.engines.shapes import engine_shapes
from consisti2v_rt.export.engines.targets import TARGETS
from consisti2v_rt.export.events import Events
from consisti2v_rt.export.precision.recipe import VariantOptions
from consisti2v_rt.kernels.cuda.sources import CALL_KERNELS
from consisti2v_rt.runtime.bundle.bundle import Bundle, hash_files
from consisti2v_rt.runtime.bundle.manifest import Manifest, graph_sha256
from consisti2v_rt.runtime.bundle.typed_json import MANIFEST_NAME
from consisti2v_rt.runtime.gpu.device import GpuStatus
from consisti2v_rt.runtime.install import install_hint

pytest.importorskip("tensorrt_rtx")

NO_GPU = GpuStatus(False, "no NVIDIA driver is installed")


@pytest.fixture(autouse=True)
def no_gpu_and_one_kernel(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "gpu" not in request.keywords:
        monkeypatch.setattr(job, "probe", lambda: NO_GPU)
        # All of them are compiled once, with the tiny model.
        monkeypatch.setattr(kernels, "CALL_KERNELS", ("noise",))


@pytest.mark.rare
def test_all_stages_of_the_tiny_model(built_tiny_bundle: Path) -> None:
    """Half precision: every attention of a possible head size is one kernel, or the build had failed."""
    bundle = Bundle.open(built_tiny_bundle)
    manifest = bundle.manifest
    assert [engine.stage for engine in manifest.engines] == list(manifest.stages)
    for engine in manifest.engines:
        metadata = json.loads(bundle.file(engine.metadata).read_text())
        assert engine.compute_capabilities == ("8.9",) and engine.platform == ""
        frames = [profile.inputs["latents"].minimum[0] for profile in engine.profiles]
        assert frames == ([1, 4] if engine.stage == "vae_decoder" else [])
        assert engine.onnx_sha256 == graph_sha256(manifest, manifest.variants["fp16"][engine.stage])
        assert {s.name: s.dtype for s in engine.inputs} == {
            s.name: s.dtype for s in manifest.variants["fp16"][engine.stage].inputs
        }
        assert metadata["plan_bytes"] == manifest.files[engine.file].bytes > metadata["weight_bytes"] > 0
        assert metadata["layers"]["total"] > 5
        assert len(metadata["activation_bytes"]) == max(len(frames), 1) and metadata["build_seconds"] > 0
    unet = json.loads(bundle.file("engines/sm89-tensorrt-rtx-fp16/unet.json").read_text())
    # Twelve in the graph; the first frame attends with the others in the four of space.
    assert len(unet["attentions"]["fused"]) == 8
    assert len(unet["attentions"]["decomposed"]) == 6, "head size 8"
    assert all("head size" in entry["reason"] for entry in unet["attentions"]["decomposed"])
    assert unet["layers"]["kinds"]["convolution"] > 20
    assert {(kernel.name, kernel.compute_capability) for kernel in manifest.kernels} == {
        (s, "8.9") for s in CALL_KERNELS
    }
    assert all(bundle.file(kernel.file).read_bytes().startswith(b"\x7fELF") for kernel in manifest.kernels)


@pytest.mark.slow
def test_one_profile_for_each_guidance_batch(toy_bundle: Path) -> None:
    seen: list[tuple[str, int, int]] = []

    def on_progress(*at: Any) -> None:
        seen.append(at)

    (unet,) = build_engines(
        toy_bundle, "rtx4060", precision="fp32", stages=["unet"], events=Events(progress=on_progress)
    )
    assert [profile.rows for profile in unet.profiles] == [1, 2, 3]
    assert [profile.inputs["x"].minimum for profile in unet.profiles] == [(1, 2, 8, 16), (2, 2, 8, 16), (3, 2, 8, 16)]
    assert all(sizes.minimum == sizes.maximum for profile in unet.profiles for sizes in profile.inputs.values())
    assert unet.inputs[0].shape == ("rows", 2, 8, 16) and unet.target == "rtx4060"
    metadata = json.loads((toy_bundle / unet.metadata).read_text())
    assert len(metadata["activation_bytes"]) == 3
    assert metadata["attentions"]["fused"] == []
    assert [(e["name"], "float" in e["reason"]) for e in metadata["attentions"]["decomposed"]] == [
        ("only_attention", True)
    ]
    assert seen and all(done <= max(total, 1) for _, done, total in seen)


def test_a_named_range_is_one_profile(toy_bundle: Path) -> None:
    (unet,) = build_engines(toy_bundle, "sm86", precision="fp32", stages=["unet"], dynamic=["rows=1:2:8"])
    (profile,) = unet.profiles
    sizes = profile.inputs["x"]
    assert (sizes.minimum[0], sizes.optimum[0], sizes.maximum[0]) == (1, 2, 8) and profile.rows is None


@pytest.mark.slow
def test_targets_live_side_by_side_and_rebuilding_replaces(
    make_toy: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_toy("fp16")
    monkeypatch.setattr(bundle_engines, "_write_graphs", lambda *_: None)
    build_engines(toy, "sm89", precision="fp16", stages=["unet", "vae_decoder"])
    first = Bundle.open(toy).manifest
    build_engines(toy, "sm120", precision="fp16", stages=["unet"])
    build_engines(toy, "sm89", precision="fp16", stages=["unet"])
    manifest = Bundle.open(toy).manifest
    found = [(engine.target, engine.stage) for engine in manifest.engines]
    assert sorted(found) == [("sm120", "unet"), ("sm89", "unet"), ("sm89", "vae_decoder")]
    plan = "engines/sm89-tensorrt-rtx-fp16/unet.plan"
    assert manifest.files[plan].sha256 == first.files[plan].sha256, "two builds of one graph are the same bytes"
    assert {kernel.compute_capability for kernel in manifest.kernels} == {"8.9", "12.0"}
    metadata = json.loads((toy / "engines/sm89-tensorrt-rtx-fp16/unet.json").read_text())
    assert metadata["attentions"] == {"fused": ["only_attention"], "decomposed": []}


@pytest.mark.slow
def test_the_portable_target(toy_bundle: Path) -> None:
    (unet,) = build_engines(toy_bundle, "rtx", precision="fp32", stages=["unet"])
    assert unet.compute_capabilities == ("8.0+",)
    manifest = Bundle.open(toy_bundle).manifest
    assert {kernel.compute_capability for kernel in manifest.kernels} == {"8.0", "8.9", "9.0", "12.0"}


def test_an_attention_that_should_fuse_and_cannot_fails_the_build(
    make_toy: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check itself: head size 8 has no kernel, and said to have one it must not build."""
    bundle = Bundle.open(make_toy("fp16", head_size=8))
    graph = bundle.manifest.stages["unet"]
    shapes = engine_shapes(graph, bundle.manifest.model, {})
    backend = find_engine_backend("tensorrt-rtx")
    request = PlanRequest("unet", bundle.file(graph.file), shapes, backend, TARGETS["sm89"])
    library, plan = load_library(backend), tmp_path / "unet.plan"
    decomposed = build_plan(library, request, plan, lambda *progress: None)["attentions"]["decomposed"]
    assert [entry["reason"] for entry in decomposed] == ["no fused kernel takes head size 8"]
    plan.unlink()
    monkeypatch.setattr(attention, "has_fused_kernel", lambda size: True)
    with pytest.raises(UserError, match="cannot build stage unet for sm89"):
        build_plan(library, request, plan, lambda *progress: None)
    assert not plan.exists()


REFUSALS = [
    ({"target": "rtx5091"}, "target 'rtx5091' is unknown; did you mean RTX 5090"),
    ({"target": "voodoo2"}, "target 'voodoo2' is unknown: choose rtx (every RTX card since Ampere), current"),
    ({"target": "NVIDIA H100 80GB HBM3"}, "--backend tensorrt --target current"),
    ({"target": "sm90"}, "builds no engines for compute capability 9.0"),
    ({"target": "GTX 1660 Ti"}, "builds no engines for GTX 1660 Ti"),
    ({"target": "RTX 2080 Ti"}, "no float32 products for Turing"),
    ({"target": "RTX 3090", "precision": "fp8"}, "precision fp8 needs compute capability 8.9"),
    ({"target": "current"}, "target current needs a GPU (no NVIDIA driver is installed)"),
    ({"backend": "onnx"}, "backend 'onnx' is unknown"),
    ({"precision": "fp4"}, "precision 'fp4' is unknown"),
    ({"precision": "fp8", "target": "sm86"}, "precision fp8 needs compute capability 8.9"),
    ({"precision": "fp8", "target": "rtx"}, "precision fp8 needs compute capability 8.9"),
    ({"stages": ["vae"]}, "the bundle has no stage 'vae': choose of text_encoder"),
    ({"dynamic": ["height=64:128:256"]}, "this bundle's size is fixed at 128x128: export it with --dynamic"),
    ({"dynamic": ["rows=3:2:1"]}, "give three rising numbers from 1 to 64"),
    ({"dynamic": ["rows=1"]}, "is not a range"),
    ({"dynamic": ["rows=1:2:" + "9" * 5000]}, "999...' is not a range"),
    ({"dynamic": ["rows=1:2:3", "rows=2:2:2"]}, "--dynamic rows is given twice"),
    ({"variant": VariantOptions(quick_check=True)}, "quick check are for other precisions"),
    ({"dynamic": ["depth=1:2:3"]}, "is not a range"),
    ({"stripped": True}, "--strip needs a GPU with its driver"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "sentence"), REFUSALS)
def test_refused_before_anything_is_written(
    toy_bundle: Path, options: dict[str, Any], sentence: str, listing: Callable[[Path], dict[str, int]]
) -> None:
    before = listing(toy_bundle)
    arguments = {"target": "sm89", "precision": "fp32"} | options
    with pytest.raises(UserError) as refused:
        build_engines(toy_bundle, **arguments)
    assert sentence in str(refused.value) and str(refused.value).endswith(".")
    assert listing(toy_bundle) == before


def test_a_missing_library_names_the_extra(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UserError, match=re.escape(install_hint("rtx"))):
        build_engines(toy_bundle, "sm89", precision="fp32")


def test_the_other_backend_needs_its_gpu(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said first: nobody installs a library that cannot be used."""

    def missing(backend: Any) -> None:
        raise UserError("tensorrt cannot be imported.")

    monkeypatch.setattr(bundle_engines, "load_library", missing)
    with pytest.raises(UserError, match="backend tensorrt builds on the GPU itself, and there is none"):
        build_engines(toy_bundle, "sm89", backend="tensorrt", precision="fp32")
    monkeypatch.setattr(job, "probe", lambda: GpuStatus(True, "", "H100", "9.0", 1))
    with pytest.raises(UserError, match=r"compute capability 9\.0\), not for 8\.9"):
        build_engines(toy_bundle, "sm89", backend="tensorrt", precision="fp32")


def test_damaged_graphs(toy_bundle: Path, listing: Callable[[Path], dict[str, int]]) -> None:
    graph = toy_bundle / "unet" / "unet.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    before = listing(toy_bundle)
    with pytest.raises(UserError, match=r"unet/unet\.onnx was altered"):
        build_engines(toy_bundle, "sm89", precision="fp32", stages=["unet"])
    assert listing(toy_bundle) == before


def test_a_graph_that_is_none(toy_bundle: Path, listing: Callable[[Path], dict[str, int]]) -> None:
    """The parser's own reason comes out, and nothing stays."""
    (toy_bundle / "unet" / "unet.onnx").write_bytes(b"no graph")
    rehash(toy_bundle)
    before = listing(toy_bundle)
    with pytest.raises(UserError, match=r"cannot load unet\.onnx \("):
        build_engines(toy_bundle, "sm89", precision="fp32", stages=["unet"])
    assert listing(toy_bundle) == before


def rehash(folder: Path) -> None:
    """Record the files as they are now."""
    manifest = Manifest.from_json((folder / MANIFEST_NAME).read_text())
    changed = dataclasses.replace(manifest, files=hash_files(folder, manifest.files))
    (folder / MANIFEST_NAME).write_text(changed.to_json())


def test_a_full_disk(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, listing: Callable[[Path], dict[str, int]]
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    before = listing(toy_bundle)
    monkeypatch.setattr(bundle_engines, "write_cubins", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        build_engines(toy_bundle, "sm89", precision="fp32", stages=["conditioning"])
    assert listing(toy_bundle) == before


@pytest.mark.slow
def test_a_failure_while_moving_leaves_the_bundle_as_it_was(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second manifest cannot be written: what was to be replaced is back."""
    build_engines(toy_bundle, "sm89", precision="fp32", stages=["conditioning"])
    for file in [*toy_bundle.rglob("*.plan"), *toy_bundle.rglob("*.cubin")]:
        # Of the same size: seen by its hash, and made again.
        file.write_bytes(bytes(byte ^ 1 for byte in file.read_bytes()))
    before = {path: path.read_bytes() for path in toy_bundle.rglob("*") if path.is_file()}
    real, calls = bundle_parts.rewrite_manifest, []

    def second_fails(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(bundle_parts, "rewrite_manifest", second_fails)
    with pytest.raises(UserError, match="No space left"):
        build_engines(toy_bundle, "sm89", precision="fp32", stages=["conditioning"])
    assert {path: path.read_bytes() for path in toy_bundle.rglob("*") if path.is_file()} == before
    calls.clear()
    with pytest.raises(UserError, match="No space left"):
        build_engines(toy_bundle, "sm86", precision="fp32", stages=["conditioning"])
    assert not list(toy_bundle.glob("engines/sm86*")), "no empty folder stays"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_ends_the_builder_at_once(
    toy_bundle: Path, listing: Callable[[Path], dict[str, int]], number: signal.Signals
) -> None:
    """Asked from another process, as a terminal does: it and its builder are gone, and nothing is left."""
    before = listing(toy_bundle)
    command = [sys.executable, "-m", "consisti2v_rt", "build", str(toy_bundle), "--target", "sm89"]
    child = subprocess.Popen(
        [*command, "--precision", "fp32"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores Ctrl-C, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not list(toy_bundle.glob(".engines.partial")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    assert child.returncode == 128 + number and "stopped; nothing half-written is left" in errors
    assert listing(toy_bundle) == before


@pytest.mark.slow
def test_a_second_build_waits_for_the_first(toy_bundle: Path, consisti2v: Callable[..., Any]) -> None:
    """Another process has the bundle for a second, and has changed its manifest by then."""
    code = (
        "import sys, time; from dataclasses import replace; from pathlib import Path\n"
        "from consisti2v_rt.export.bundle_lock import building\n"
        "from consisti2v_rt.export.bundle_parts import rewrite_manifest\n"
        "with building(Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(3)\n"
        "    rewrite_manifest(Path(sys.argv[1]), lambda manifest: replace(manifest, name='changed'))"
    )
    first = subprocess.Popen([sys.executable, "-c", code, str(toy_bundle)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    done = consisti2v("build", toy_bundle, "--target", "sm89", "--precision", "fp32", "--stages", "unet")
    assert first.wait(30) == 0 and done.code == 0
    assert f"note: waiting for process {first.pid}, which is writing to {toy_bundle}" in done.stderr
    manifest = Bundle.open(toy_bundle).manifest
    assert manifest.name == "changed" and [engine.stage for engine in manifest.engines] == ["unet"]
    assert not list(toy_bundle.glob(".*"))


def test_a_builder_that_dies_is_told(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """TensorRT for RTX ends its process where refitting meets no driver; the program must survive it."""
    dying = tmp_path / "dying.py"
    dying.write_text("import os, sys; sys.stderr.write('CHECK CUDA_SUCCESS\\n'); sys.stderr.flush(); os.abort()")
    real = subprocess.Popen
    monkeypatch.setattr(
        process.subprocess, "Popen", lambda command, **options: real([sys.executable, str(dying)], **options)
    )
    with pytest.raises(UserError, match=r"ended while it built stage unet \(exit code -6, CHECK CUDA_SUCCESS\)"):
        build_engines(toy_bundle, "sm89", precision="fp32", stages=["unet"])


@pytest.mark.slow
def test_the_command(toy_bundle: Path, consisti2v: Callable[..., Any]) -> None:
    done = consisti2v("build", toy_bundle, "--target", "sm89", "--precision", "fp32", "--stages", "unet")
    assert done.code == 0 and " 1 engine for sm89 in " in done.stdout
    expected = "1 attention runs as separate operations, as expected (no fused kernel takes float): only_attention"
    assert expected in done.stderr
    assert "separate operations give the same numbers" in done.stderr
    assert re.search(r"^\d+:\d\d  building unet$", done.stderr, re.MULTILINE), "progress where there is no terminal"
    shown = consisti2v("inspect", toy_bundle, "--engine", "unet")
    assert "compute capability 8.9, Linux and Windows" in shown.stdout and "profile 2" in shown.stdout
    metadata = json.loads(consisti2v("inspect", toy_bundle, "--engine", "all", "--json").stdout)
    assert [entry["stage"] for entry in metadata] == ["unet"]
    assert (
        "has no engine 'vae': choose all, sm89, unet" in consisti2v("inspect", toy_bundle, "--engine", "vae").refusal()
    )
    assert (
        "there is no GPU" in consisti2v("build", toy_bundle, "--target", "sm89", "--compare", "onnxruntime").refusal()
    )


def entry(**changes: Any) -> Callable[[str], str]:
    return lambda text: json.dumps(json.loads(text) | changes)


DAMAGED_METADATA: list[Callable[[str], str]] = [
    lambda text: text[: len(text) // 2],
    lambda text: "[" * 100_000,
    lambda text: "[]",
    lambda text: json.dumps({"metadata_version": 99}),
    lambda text: json.dumps({"metadata_version": 1}),
    entry(metadata_version=True),
    entry(layers=[]),
    entry(layers={"total": 3, "kinds": {"shuffle": "two"}}),
    entry(attentions={"fused": [], "decomposed": [{"name": "one"}]}),
    entry(build_seconds="long"),
    entry(build_seconds=float("nan")),
    entry(peak_host_bytes="1 GiB"),
    entry(weight_bytes=[]),
    entry(activation_bytes=7),
    entry(activation_bytes=[None]),
    entry(contents={"kernels": {"product": 1}, "bytes": {"product": "x"}, "score_accumulation": {}}),
    entry(contents={"kernels": {}}),
    entry(contents={"kernels": {}, "bytes": {}, "score_accumulation": {}, "product_accumulation": {"auto": "x"}}),
]


@pytest.mark.slow
def test_damaged_metadata(toy_bundle: Path, consisti2v: Callable[..., Any]) -> None:
    """The manifest says that they are right: made so by hand, or written by another version."""
    (engine,) = build_engines(toy_bundle, "sm89", precision="fp32", stages=["conditioning"])
    metadata = toy_bundle / engine.metadata
    whole = metadata.read_text()
    for damage in DAMAGED_METADATA:
        metadata.write_text(damage(whole))
        rehash(toy_bundle)
        shown = consisti2v("inspect", toy_bundle, "--engine", "conditioning").refusal()
        assert "conditioning.json cannot be read (" in shown and shown.endswith("--stages conditioning'.")


def test_no_engines(toy_bundle: Path, consisti2v: Callable[..., Any]) -> None:
    for name in ("all", "unet"):
        sentence = consisti2v("inspect", toy_bundle, "--engine", name).refusal()
        assert sentence == "the bundle has no engines: make some with 'consisti2v build BUNDLE --target rtx4060'."


def test_targets_in_capitals(toy_bundle: Path) -> None:
    (engine,) = build_engines(toy_bundle, "RTX4060", precision="fp32", stages=["conditioning"])
    assert engine.target == "rtx4060" and engine.file.startswith("engines/rtx4060-")


def test_bad_bundles(tmp_path: Path, consisti2v: Callable[..., Any]) -> None:
    assert "does not exist" in consisti2v("build", tmp_path / "none", "--target", "sm89").refusal()
    assert "is not a bundle" in consisti2v("build", tmp_path, "--target", "sm89").refusal()
