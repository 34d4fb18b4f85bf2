"""A whole bundle on a real GPU: engines, parity of every stage, videos, noise; what the stand-in can run of it, here.

``benchmarks/device.sh`` runs each test marked ``gpu`` as a part of its own, on one copy of the bundle that collects
engines (``CONSISTI2V_DEVICE_BUNDLE``); elsewhere the copy is made for this file.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from consisti2v_rt.benchmarks.device.__main__ import WORK_BUNDLE
from consisti2v_rt.errors import UserError
from consisti2v_rt.runtime import backends
from consisti2v_rt.runtime.bundle.bundle import Bundle, hash_files
from consisti2v_rt.runtime.bundle.manifest import EngineSpec
from consisti2v_rt.runtime.bundle.stage_graphs import stage_graph
from consisti2v_rt.runtime.bundle.typed_json import MANIFEST_NAME
from consisti2v_rt.runtime.gpu.cards import is_data_centre
from consisti2v_rt.runtime.gpu.device import open_gpu, probe
from consisti2v_rt.runtime.gpu.executor import GpuExecutor
from consisti2v_rt.runtime.gpu.options import GpuOptions
from consisti2v_rt.runtime.pipeline import ImageToVideo
from consisti2v_rt.runtime.request.presets import PUBLISHED
from consisti2v_rt.runtime.session import OnnxCpuSession
from consisti2v_rt.tests.gpu.parity import LIMITS, cuda_backends, dims_of, relative_l2, run_session, stage_parity

FACTOR = 0.5
"""What the last product's weights are multiplied by: a power of two, so that no rounding is added."""


@pytest.fixture(scope="module")
def real_gpu() -> Any:
    if not probe().found:
        pytest.skip(f"needs an NVIDIA GPU: {probe().reason}.")
    return open_gpu()


@pytest.fixture(scope="module")
def work_bundle(real_gpu: Any, demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that engines may be added to."""
    given = os.environ.get(WORK_BUNDLE)
    return Path(given) if given else Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("gpu") / "bundle"))


@pytest.fixture(scope="module")
def built_bundle(work_bundle: Path) -> Path:
    """With what can be had here: half-precision graphs and engines for this card, or portable ones that are there."""
    if target_here(Bundle.open(work_bundle, verify=False)) == "current":
        try:
            from consisti2v_rt.export.engines.bundle_engines import build_engines

            build_engines(work_bundle, "current", backend=engine_backend_for("current"))
        except (ImportError, UserError) as error:
            print(f"no engines on this machine: {error}")
    return work_bundle


@pytest.fixture(scope="module")
def choices(built_bundle: Path) -> list[tuple[backends.Backend, str]]:
    found = cuda_backends(Bundle.open(built_bundle, verify=False))
    if not found:
        reasons = "; ".join(f"{b.title}: {b.probe().reason}" for b in backends.BACKENDS if b.device == "cuda")
        pytest.skip(f"nothing on this machine runs a bundle on its GPU ({reasons}).")
    return found


@pytest.fixture
def record(record_property: Any) -> Any:
    """Keep something of a test in the run's report, as JSON."""
    return lambda name, value: record_property(name, json.dumps(value))


def find_backend(name: str) -> backends.Backend:
    return next(entry for entry in backends.BACKENDS if entry.name == name)


def open_on(bundle: Path, backend: backends.Backend, precision: str, gpu: GpuOptions) -> ImageToVideo:
    """The bundle on this backend, whichever would be chosen by itself."""
    choice = backends.Choice(backend, precision, "asked for")
    return ImageToVideo(Bundle.open(bundle, verify=False), choice=choice, gpu=gpu)


def engine_backend_for(target: str) -> str:
    """The library that builds a target here. Portable plans are asked of TensorRT for RTX on any card: what it says is
    a finding.
    """
    here = target == "current" and is_data_centre(probe().compute_capability)
    return "tensorrt" if here else "tensorrt-rtx"


def target_here(bundle: Any) -> str:
    """What is built for this card: "current", or the portable target where that alone was built."""
    built = [engine.target for engine in bundle.manifest.engines]
    return next((target for target in ("current", "rtx") if target in built), "current")


def engines_here(bundle: Any, precision: str = "fp16") -> list[EngineSpec]:
    """Engines that were built for the card at hand, or the portable ones where there are none."""
    target = target_here(bundle)
    found = [e for e in bundle.manifest.engines if e.target == target and e.precision == precision]
    if not found:
        pytest.skip(f"there is no {precision} engine for this card: see the part that builds it.")
    return found


# -- engines -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("target", ["current", "rtx", "sm80"])
def test_engine(work_bundle, target, record):
    """What builds, and whether the library loads the U-Net's plan on this GPU, whatever the manifest says of it.

    All stages are built, but for SM80: no other card takes its plans as engines, so that the U-Net alone tells.
    """
    from consisti2v_rt.export.bundle_parts import rewrite_manifest
    from consisti2v_rt.export.engines.bundle_engines import build_engines
    from consisti2v_rt.export.events import Events
    from consisti2v_rt.runtime.gpu.tensorrt_session import load_module

    reports: list[Any] = []
    try:
        stages = ["unet"] if target == "sm80" else None
        events = Events(engine=lambda engine, metadata: reports.append(metadata))
        built = build_engines(work_bundle, target, backend=engine_backend_for(target), stages=stages, events=events)
    except (ImportError, UserError) as refusal:
        pytest.skip(str(refusal))
    engine = next(engine for engine in built if engine.stage == "unet")
    record("capabilities", list(engine.compute_capabilities))
    stages = {f["stage"]: [f["build_seconds"], f["plan_bytes"], len(f["attentions"]["fused"])] for f in reports}
    record("stages", stages)
    library = load_module(engine.backend)
    open_gpu().make_current()
    runtime = library.Runtime(library.Logger(library.Logger.WARNING))
    plan = Bundle.open(work_bundle, verify=False).read(engine.file, hashed=True).tobytes()
    if runtime.deserialize_cuda_engine(plan) is None:
        # No later part may choose it.
        rewrite_manifest(
            work_bundle,
            lambda m: dataclasses.replace(m, engines=tuple(e for e in m.engines if e.target != engine.target)),
        )
        pytest.skip(f"{engine.backend} {engine.version} refuses the plan for {engine.target} on this GPU.")


@pytest.mark.gpu
def test_inspector(built_bundle, record):
    """The engine inspector's layers of every stage: how many of each kind, each one's name, kind and kernel."""
    from consisti2v_rt.runtime.commands.engine_tables import inspect_on_gpu

    bundle = Bundle.open(built_bundle, verify=False)
    for engine in engines_here(bundle):
        layers = layer_summary(inspect_on_gpu(bundle, engine))
        assert layers["count"] > 0
        record(engine.stage, layers)


def layer_summary(inspector: Any) -> dict[str, Any]:
    """The inspector's JSON without its tensors."""
    # With little verbosity a layer is its name alone.
    known = [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in inspector["Layers"]]
    keys = ("Name", "LayerType", "TacticName")
    return {
        "count": len(known),
        "kinds": dict(Counter(str(layer.get("LayerType", "unknown")) for layer in known).most_common()),
        "layers": [{key: str(layer[key])[:200] for key in keys if key in layer} for layer in known],
    }


def test_layers_of_the_inspector():
    verbose = {"Name": "conv + act", "LayerType": "CaskConvolution", "TacticName": "sm89_xmma", "Inputs": [{}] * 3}
    summary = layer_summary({"Layers": [verbose, "a name alone"]})
    assert summary["count"] == 2 and summary["kinds"] == {"CaskConvolution": 1, "unknown": 1}
    assert summary["layers"][0] == {key: verbose[key] for key in ("Name", "LayerType", "TacticName")}
    assert summary["layers"][1] == {"Name": "a name alone"}


@pytest.mark.gpu
def test_compare(built_bundle, record):
    """``build --compare onnxruntime``: every stage's engine, every profile and three seeds, through polygraphy."""
    from consisti2v_rt.export.engines.compare import check_comparison, compare_engines

    try:
        check_comparison("onnxruntime")
    except UserError as refusal:
        pytest.skip(str(refusal))
    lines: list[str] = []
    over: list[str] = []
    for engine in engines_here(Bundle.open(built_bundle, verify=False)):
        try:
            lines += compare_engines(built_bundle, [engine])
        except UserError as refusal:
            over.append(str(refusal))
    record("lines", lines)
    assert not over


@pytest.mark.gpu
def test_stripped(built_bundle, tmp_path, record):
    """An engine without weights, filled from the graph when loaded, and again after the graph's weights changed."""
    from consisti2v_rt.export.engines.bundle_engines import build_engines

    copy = Path(shutil.copytree(built_bundle, tmp_path / "stripped"))
    try:
        target = target_here(Bundle.open(built_bundle, verify=False))
        (engine,) = build_engines(copy, target, backend=engine_backend_for(target), stages=["unet"], stripped=True)
    except (ImportError, UserError) as refusal:
        pytest.skip(str(refusal))
    assert engine.stripped
    before = engine_and_graph(copy, engine.backend)
    scale_last_product(copy, "fp16")
    after = engine_and_graph(copy, engine.backend)
    record("relative_l2", [relative_l2(*before), relative_l2(*after)])
    assert relative_l2(*after) <= 0.5 * relative_l2(before[1], after[1])


def engine_and_graph(bundle_path: Path, backend: str) -> tuple[Any, Any]:
    """The fp16 U-Net's prediction by the engine, and ONNX Runtime's of the same graph, for one input."""
    from consisti2v_rt.export.precision.cases import Cases
    from consisti2v_rt.runtime.gpu.entry import load_engine

    bundle = Bundle.open(bundle_path)
    case = next(case for case in Cases(bundle).of("unet"))
    dims, graph = dims_of(bundle, case.dims), stage_graph(bundle, "unet", "fp16")
    engine = load_engine(backend, bundle, "unet", dims, None, "fp16")
    exact = OnnxCpuSession(bundle.file(graph.file), graph, dims)
    found, expected = (run_session(session, case.inputs)["noise_pred"] for session in (engine, exact))
    return found, expected


def scale_last_product(bundle_path: Path, precision: str) -> str:
    """Multiply the weights of the U-Net's last product by FACTOR in its file, and record its new hash; their name."""
    import onnx
    from onnx import helper

    bundle = Bundle.open(bundle_path, verify=False)
    path = bundle.file(stage_graph(bundle, "unet", precision).file)
    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.external_data}
    products = [
        name
        for node in graph.node
        if node.op_type in ("Conv", "MatMul", "Gemm")
        for name in node.input[1:2]
        if name in weights
    ]
    tensor = weights[products[-1]]
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    data = path.with_name(place["location"])
    held = np.memmap(data, dtype, "r+", int(place.get("offset", 0)), (int(np.prod(tensor.dims)),))
    held[:] = (held * FACTOR).astype(dtype)
    held.flush()
    name = data.relative_to(bundle.path).as_posix()
    manifest = bundle.manifest
    changed = dataclasses.replace(manifest, files=manifest.files | hash_files(bundle.path, [name]))
    (bundle.path / MANIFEST_NAME).write_text(changed.to_json(), encoding="utf-8")
    return tensor.name


@pytest.mark.slow
def test_weights_are_changed_in_the_graph_and_said_so(demo_bundle, tmp_path):
    """Half the weights of the last product: half its output, but for the bias; the bundle stays whole."""
    pytest.importorskip("onnx")
    from consisti2v_rt.export.precision.cases import Cases

    copy = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    outputs = []
    for path in (demo_bundle, copy):
        bundle = Bundle.open(path, verify=False)
        if path == copy:
            assert "conv_out" in scale_last_product(copy, "fp32")
            Bundle.open(copy, verify=True)
        spec = bundle.manifest.stages["unet"]
        session = OnnxCpuSession(bundle.file(spec.file), spec)
        outputs.append(run_session(session, next(Cases(bundle).of("unet")).inputs)["noise_pred"])
    whole, half = (values - values.mean(axis=(2, 3, 4), keepdims=True) for values in outputs)
    assert relative_l2(half, FACTOR * whole) < 1e-5


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_calibrated(built_bundle, precision, photo, record):
    """``build --precision int8|fp8 --calibrate demo`` for this card, then the U-Net's parity and a video."""
    from consisti2v_rt.export.engines.bundle_engines import build_engines
    from consisti2v_rt.export.precision.calibration_set import calibration_set
    from consisti2v_rt.export.precision.recipe import VariantOptions

    try:
        options = VariantOptions(calibration=calibration_set("demo"))
        target = target_here(Bundle.open(built_bundle, verify=False))
        engine, *_ = build_engines(
            built_bundle, target, backend=engine_backend_for(target), precision=precision, variant=options
        )
    except (ImportError, UserError) as refusal:
        pytest.skip(str(refusal))
    calibration = Bundle.open(built_bundle, verify=False).manifest.variants[precision]["unet"].calibration
    assert calibration is not None and calibration.name
    losses = json.loads((built_bundle / "variants" / precision / "losses.json").read_text())["stages"]["unet"]
    record("graph", losses)
    errors = stage_parity(built_bundle, find_backend(engine.backend), precision, ["unet"])
    record("engine", errors)
    assert max(errors.values()) <= LIMITS[precision]
    record("video", compare_video(built_bundle, find_backend(engine.backend), precision, photo))


# -- parity and videos -----------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_parity(built_bundle, choices, record):
    """Every stage, every batch, three seeds, each backend and precision that runs."""
    for backend, precision in choices:
        errors = stage_parity(built_bundle, backend, precision)
        record(f"{backend.name} {precision}", errors)
        over = {name: error for name, error in errors.items() if not error <= LIMITS[precision]}
        assert not over, (backend.name, precision, over)


def test_parity_of_every_stage_on_three_seeds(fake_cuda, demo_bundle):
    """The stand-in computes in ONNX Runtime too: what it takes and gives is what the graph does."""
    errors = stage_parity(demo_bundle, backends.BACKENDS[0], "fp32", ["conditioning", "unet"])
    assert set(errors) == {f"{stage} seed {s}" for stage in ("conditioning batch 1", "unet batch 2") for s in (0, 1, 2)}
    assert max(errors.values()) < 1e-5


def test_an_open_batch_is_compared_at_every_guidance_batch(fake_cuda, photo):
    errors = stage_parity(photo.parent / "demo_bundle", backends.BACKENDS[0], "fp32", ["unet"])
    assert set(errors) == {f"unet batch {rows} seed {seed}" for rows in (1, 2, 3) for seed in (0, 1, 2)}
    assert max(errors.values()) < 1e-5


def compare_video(
    bundle: Path,
    backend: backends.Backend,
    precision: str,
    photo: Path,
    *,
    cuda_graph: bool = True,
    low_vram: bool | None = None,
    steps: int = 25,
) -> dict[str, Any]:
    """A second video on the GPU: seconds by stage, memory, and its distance from the processor's at the same noise."""
    options: dict[str, Any] = {**PUBLISHED, "num_inference_steps": steps, "seed": 7}
    exact = ImageToVideo.from_bundle(bundle, verify=False, device="cpu")(photo, "zoom in", **options)
    animate = open_on(bundle, backend, precision, GpuOptions(cuda_graph=cuda_graph, low_vram=low_vram))
    for _ in range(2):
        result = animate(photo, "zoom in", **options)
    executor = animate._executor
    assert isinstance(executor, GpuExecutor)
    error = float(np.mean((result.frames.astype(np.float64) - exact.frames.astype(np.float64)) ** 2))
    return {
        "seconds": dict(result.timings),
        "graph": executor.loop.graph_reasons,
        "memory": executor.memory_report(),
        "latents_relative_l2": relative_l2(result.latents, exact.latents),
        "psnr_db": 100.0 if error == 0 else float(10 * np.log10(255**2 / error)),
    }


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options", [{"cuda_graph": True}, {"cuda_graph": False}, {"low_vram": True}], ids=["graph", "eager", "low_vram"]
)
def test_video(built_bundle, choices, photo, options, record):
    """A whole video and its memory, with graph, without, and with one stage's weights at a time."""
    for backend, precision in choices:
        if precision not in ("fp32", "fp16"):
            continue
        report = compare_video(built_bundle, backend, precision, photo, **options)
        record(f"{backend.name} {precision}", report)
        assert report["psnr_db"] >= 35, report
        if options.get("cuda_graph") and backend.name != "onnxruntime-cuda":
            assert set(report["graph"].values()) == {""}, report["graph"]
        memory = report["memory"]
        if memory["plan"]["known"]:
            assert memory["free_before"] - memory["free"] <= memory["plan"]["needed"], memory


def test_a_video_with_low_vram(fake_cuda, demo_bundle, photo):
    report = compare_video(demo_bundle, backends.BACKENDS[0], "fp32", photo, low_vram=True, steps=2)
    assert report["psnr_db"] > 60 and report["latents_relative_l2"] < 2e-5


def check_device_noise(bundle: Path, backend: backends.Backend, precision: str, photo: Path, steps: int) -> None:
    """Another video than with noise from the host; the same for the same seed, another one for another seed."""
    animate = open_on(bundle, backend, precision, GpuOptions(device_noise=True))
    on_host = open_on(bundle, backend, precision, GpuOptions())
    options: dict[str, Any] = {**PUBLISHED, "num_inference_steps": steps}
    one, again, other = (animate(photo, "zoom in", seed=seed, **options) for seed in (7, 7, 8))
    drawn_on_host = on_host(photo, "zoom in", seed=7, **options)
    assert np.array_equal(one.latents, again.latents)
    assert relative_l2(other.latents, one.latents) > 1e-3
    assert relative_l2(drawn_on_host.latents, one.latents) > 1e-3


@pytest.mark.gpu
def test_device_noise(built_bundle, choices, photo):
    backend, precision = next((b, p) for b, p in choices if p in ("fp32", "fp16"))
    check_device_noise(built_bundle, backend, precision, photo, 25)


def test_device_noise_on_the_stand_in(fake_cuda, demo_bundle, photo):
    check_device_noise(demo_bundle, backends.BACKENDS[0], "fp32", photo, 1)


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
    with pytest.raises(pytest.skip.Exception, match="there is no int8 engine for this card"):
        engines_here(with_engines("rtx"), "int8")
