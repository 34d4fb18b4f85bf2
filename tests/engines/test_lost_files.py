"""Engines, variants and kernels that are lost or damaged: what still runs, what is refused, what a build mends."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt import UserError
from consisti2v_rt.errors import DerivedFileError
from consisti2v_rt.export.bundle_parts import rewrite_manifest, without_files
from consisti2v_rt.export.engines import job, kernels
from consisti2v_rt.export.engines.bundle_engines import build_engines
from consisti2v_rt.export.events import Events
from consisti2v_rt.export.precision.variant import write_variant
from consisti2v_rt.runtime.backends import choose
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.engines import Machine
from consisti2v_rt.runtime.bundle.stage_graphs import stage_graph
from consisti2v_rt.runtime.gpu import entry
from consisti2v_rt.runtime.gpu.device import GpuStatus
from consisti2v_rt.runtime.gpu.kernels import GpuKernels

pytest.importorskip("tensorrt_rtx")

PLACE = "engines/sm89-tensorrt-rtx-fp16"


@pytest.fixture(autouse=True)
def no_gpu_and_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "probe", lambda: GpuStatus(False, "no NVIDIA driver is installed"))
    monkeypatch.setattr(kernels, "CALL_KERNELS", ("noise",))


@pytest.fixture(scope="module")
def built(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages in fp16 with their engines for compute capability 8.9."""
    folder = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("lost") / "bundle"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "probe", lambda: GpuStatus(False, "no NVIDIA driver is installed"))
        patch.setattr(kernels, "CALL_KERNELS", ("noise",))
        build_engines(folder, "sm89", stages=["conditioning", "vae_encoder"])
    return folder


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(built, tmp_path / "bundle"))


def alter(path: Path) -> None:
    """One byte, the size stays."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


@pytest.mark.slow
def test_float32_runs_without_them(bundle: Path, consisti2v: Callable[..., Any], photo: Path, tmp_path: Path) -> None:
    """Hashed or not; and the tables are shown, with what is missing."""
    alter(bundle / PLACE / "conditioning.plan")
    shutil.rmtree(bundle / "variants")
    for options in ((), ("--no-verify",)):
        output = tmp_path / f"{len(options)}.gif"
        command = ("generate", "-b", bundle, "-i", photo, "--steps", 1, "--device", "cpu", "-o", output, *options)
        assert consisti2v(*command).code == 0 and output.is_file()
    shown = consisti2v("inspect", bundle)
    assert shown.code == 0 and "not recorded" in shown.stdout
    assert "variants/fp16/losses.json is missing" in shown.stderr and "'consisti2v build'" in shown.stderr
    assert consisti2v("doctor", "--bundle", bundle).code == 0
    told = consisti2v("inspect", bundle, "--verify").stderr
    assert told.count("error:") == 1 and told.count("is missing") == 5 and "Traceback" not in told
    assert f"{PLACE}/conditioning.plan was altered (its SHA-256 differs)" in told and "'consisti2v build'" in told


def test_a_run_that_needs_them_is_refused(bundle: Path) -> None:
    graph = "variants/fp16/conditioning/conditioning.onnx"
    alter(bundle / graph)
    stage_graph(Bundle.open(bundle, verify=False), "conditioning", "fp16")
    with pytest.raises(DerivedFileError, match=rf"{graph} was altered .*'consisti2v build BUNDLE --target TARGET "):
        stage_graph(Bundle.open(bundle), "conditioning", "fp16")
    (bundle / graph).unlink()
    with pytest.raises(DerivedFileError, match=rf"{graph} is missing: make it again with 'consisti2v build BUNDLE"):
        stage_graph(Bundle.open(bundle, verify=False), "conditioning", "fp16")


def test_a_whole_variant_that_lost_a_graph(tmp_path: Path, demo_bundle: Path) -> None:
    """Its graphs are the float32 ones here; where they lie is what counts."""
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    manifest = Bundle.open(bundle).manifest
    for stage in manifest.stages:
        shutil.copytree(bundle / stage, bundle / "variants/fp16" / stage)
    graphs = {name: replace(spec, file=f"variants/fp16/{spec.file}") for name, spec in manifest.stages.items()}
    records = {
        f"variants/fp16/{name}": record
        for name, record in manifest.files.items()
        if name.startswith(tuple(f"{stage}/" for stage in manifest.stages))
    }
    rewrite_manifest(bundle, lambda m: replace(m, variants={"fp16": graphs}, files=m.files | records))
    assert choose(Bundle.open(bundle), "cpu", "fp16").precision == "fp16"
    (bundle / "variants/fp16/unet/unet.onnx.data").unlink()
    with pytest.raises(UserError, match=r"unet\.onnx\.data is missing: make it again with 'consisti2v build BUNDLE"):
        choose(Bundle.open(bundle), "cpu", "fp16")
    assert choose(Bundle.open(bundle), "cpu").precision == "fp32"


@pytest.mark.parametrize("damage", [alter, lambda path: path.unlink()], ids=["altered", "missing"])
def test_an_engine_is_refused_before_it_is_loaded(
    bundle: Path, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs that it was built from are not asked for."""
    spec = Bundle.open(bundle).manifest.engines[0]
    monkeypatch.setattr(entry, "machine", lambda backend: Machine("8.9", {backend: spec.version}))
    monkeypatch.setattr(entry, "STAGES", ("conditioning", "vae_encoder"))
    monkeypatch.setattr("consisti2v_rt.runtime.bundle.engines.STAGES", ("conditioning", "vae_encoder"))
    (bundle / "variants/fp16/conditioning/conditioning.onnx").unlink()
    assert entry.fit_engines("tensorrt-rtx", Bundle.open(bundle), "fp16").usable
    damage(bundle / spec.file)
    found = entry.fit_engines("tensorrt-rtx", Bundle.open(bundle), "fp16")
    assert not found.usable and found.failed and spec.file in found.reason
    assert "make it again with 'consisti2v build BUNDLE --target current --backend tensorrt-rtx" in found.reason


def test_a_kernel_is_refused(bundle: Path) -> None:
    class Card:
        compute_capability, stream = "8.9", None

    (kernel,) = Bundle.open(bundle).manifest.kernels
    assert GpuKernels(Card(), Bundle.open(bundle))._cubin("noise")  # type: ignore[arg-type]
    alter(bundle / kernel.file)
    with pytest.raises(DerivedFileError, match=r"noise\.cubin was altered .*'consisti2v build BUNDLE "):
        GpuKernels(Card(), Bundle.open(bundle))._cubin("noise")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_build_mends_lost_engines(bundle: Path, consisti2v: Callable[..., Any]) -> None:
    whole = Bundle.open(bundle).manifest
    shutil.rmtree(bundle / "engines")
    done = consisti2v("build", bundle, "--target", "sm89", "--stages", "conditioning,vae_encoder")
    assert done.code == 0
    (note,) = [line for line in done.stderr.splitlines() if line.startswith("note:")]
    assert "lost or damaged: engines/" in note and "(is missing), and 4 more" in note
    again = Bundle.open(bundle)
    again.verify()
    assert [(e.stage, e.file) for e in again.manifest.engines] == [(e.stage, e.file) for e in whole.engines]
    assert again.manifest.variants == whole.variants and len(again.manifest.kernels) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conditioning/conditioning.onnx", "vae_encoder/vae_encoder.onnx.data"])
def test_a_damaged_variant_is_written_anew(bundle: Path, name: str) -> None:
    alter(bundle / "variants/fp16" / name)
    seen, told = [], []
    stages = ["conditioning", "vae_encoder"]
    write_variant(bundle, "fp16", stages, events=Events(variant=seen.append, notice=told.append))
    assert [report.skipped for report in seen] == [not name.startswith(stage) for stage in stages]
    assert len(told) == 1 and name in told[0]
    Bundle.open(bundle).verify()


def test_what_was_exported_stays_strict(bundle: Path) -> None:
    (bundle / "unet/unet.onnx").unlink()
    shutil.rmtree(bundle / "engines")
    with pytest.raises(UserError, match=r"lacks unet/unet\.onnx: copy it completely, or export it again"):
        build_engines(bundle, "sm89", stages=["conditioning"])


def test_only_what_needs_a_file_leaves_the_manifest(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    without = without_files(manifest, [f"{PLACE}/vae_encoder.json"])
    assert [engine.metadata for engine in without.engines] == [manifest.engines[0].metadata, ""]
    without = without_files(manifest, [f"{PLACE}/vae_encoder.plan"])
    assert without.engines == manifest.engines[:1] and f"{PLACE}/vae_encoder.json" not in without.files
    without = without_files(manifest, ["variants/fp16/vae_encoder/vae_encoder.onnx.data"])
    assert list(without.variants["fp16"]) == ["conditioning"] and without.engines == manifest.engines
    assert not [name for name in without.files if name.startswith("variants/fp16/vae_encoder/")]


@pytest.mark.rare
def test_engines_of_a_graph_that_was_written_anew_are_named(
    bundle: Path, consisti2v: Callable[..., Any], change_weight: Callable[..., None]
) -> None:
    """Of the other target; those that are built now are not old, and the stage that stayed is not named."""
    build_engines(bundle, "sm86", stages=["conditioning", "vae_encoder"])
    change_weight(bundle, "vae_encoder", "vae.encoder.conv_in.weight", 1.5)
    command = ("build", bundle, "--target", "sm86", "--stages", "vae_encoder")
    (note,) = [line for line in consisti2v(*command).stderr.splitlines() if line.startswith("note:")]
    assert note.startswith("note: engines for sm89 were built from the old fp16 graphs")
    assert note.endswith("--target sm89 --backend tensorrt-rtx --precision fp16 --stages vae_encoder")
    assert "note:" not in consisti2v(*command).stderr
