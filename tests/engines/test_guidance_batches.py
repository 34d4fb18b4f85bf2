"""``build --batches``: an engine of one guidance batch has fixed sizes, and runs the others as well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt import UserError
from consisti2v_rt.export.engines import job, kernels
from consisti2v_rt.export.engines.bundle_engines import build_engines
from consisti2v_rt.export.engines.shapes import engine_shapes
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.engines import Machine, check_engine
from consisti2v_rt.runtime.gpu.device import GpuStatus
from consisti2v_rt.runtime.gpu.entry import with_nearest_rows
from consisti2v_rt.runtime.gpu.tensorrt_session import choose_profile


@pytest.fixture(autouse=True)
def no_gpu_and_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "probe", lambda: GpuStatus(False, "no NVIDIA driver is installed"))
    monkeypatch.setattr(kernels, "CALL_KERNELS", ("noise",))


@pytest.mark.slow
def test_one_batch_is_a_static_plan_that_every_batch_runs_on(toy_bundle: Path, consisti2v: Callable[..., Any]) -> None:
    pytest.importorskip("tensorrt_rtx")
    options = {"precision": "fp32", "stages": ["unet"]}
    build_engines(toy_bundle, "sm89", **options)  # type: ignore[arg-type]
    every = Bundle.open(toy_bundle).manifest
    consisti2v("build", toy_bundle, "--target", "sm89", "--precision", "fp32", "--stages", "unet", "--batches", "2")
    manifest = Bundle.open(toy_bundle).manifest
    (unet,) = manifest.engines
    assert unet.inputs[0].shape == (2, 2, 8, 16), "fixed"
    assert [(profile.rows, profile.inputs) for profile in unet.profiles] == [(2, {})]
    assert manifest.files[unet.file].bytes < every.files[unet.file].bytes
    for rows in (1, 2, 3):
        sizes = with_nearest_rows(unet, {"rows": rows})
        assert sizes == {"rows": 2} and choose_profile(unet, sizes) == 0
        check_engine(unet, manifest, Machine("8.9", {"tensorrt-rtx": unet.version}), sizes)
    assert "2 rows, every size fixed" in consisti2v("inspect", toy_bundle, "--engine", "unet").stdout
    before = (toy_bundle / unet.file).stat().st_mtime_ns
    build_engines(toy_bundle, "sm89", batches=(2,), **options)  # type: ignore[arg-type]
    assert (toy_bundle / unet.file).stat().st_mtime_ns == before, "what is there already stays"


def test_two_batches_are_two_profiles_and_other_stages_have_none(demo_bundle: Path, toy_bundle: Path) -> None:
    manifest = Bundle.open(toy_bundle).manifest
    shapes = engine_shapes(manifest.stages["unet"], manifest.model, {}, (1, 2))
    assert [profile.rows for profile in shapes.profiles] == [1, 2] and shapes.inputs[0].shape[0] == "rows"
    fixed = Bundle.open(demo_bundle, verify=False).manifest
    assert engine_shapes(fixed.stages["vae_decoder"], fixed.model, {}, (2,)).profiles == ()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"batches": (4,)}, "--batches 4 does not fit: name guidance batches of 1"),
        ({"batches": (2,), "dynamic": ["rows=1:2:3"]}, "both say which batches there are"),
    ],
)
def test_refused(toy_bundle: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_engines(toy_bundle, "sm89", precision="fp32", **options)


def test_words_and_bundles_of_one_batch_are_refused(
    toy_bundle: Path, demo_bundle: Path, tmp_path: Path, consisti2v: Callable[..., Any]
) -> None:
    import shutil

    said = consisti2v("build", toy_bundle, "--target", "sm89", "--batches", "two").refusal()
    assert "are no numbers: name guidance batches such as 2" in said
    copy = shutil.copytree(demo_bundle, tmp_path / "fixed")
    if Bundle.open(copy, verify=False).manifest.model.rows is not None:
        with pytest.raises(UserError, match="this bundle's batch is fixed at"):
            build_engines(copy, "sm89", precision="fp32", batches=(2,))
