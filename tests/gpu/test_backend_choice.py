"""Which backend runs a bundle: order, devices, precisions, and sentences that say why not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from consisti2v_rt import ImageToVideo, UserError
from consisti2v_rt.runtime import backends
from consisti2v_rt.runtime.backends import Backend, choose, table
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.engines import Machine, engines_fit, find_engine, refusal, runs_on
from consisti2v_rt.runtime.bundle.manifest import STAGES, EngineSpec, KernelSpec, ProfileSpec, ShapeRange, TensorSpec
from consisti2v_rt.runtime.bundle.stage_graphs import Availability
from consisti2v_rt.runtime.gpu.entry import with_nearest_rows
from consisti2v_rt.runtime.gpu.executor import video_seeds
from consisti2v_rt.runtime.gpu.kernels import find_cubin
from consisti2v_rt.runtime.gpu.tensorrt_session import choose_profile
from consisti2v_rt.runtime.gpu.unet_on_device import _MicroBatches
from consisti2v_rt.runtime.gpu.vae_decode import Chunk, chunks

ENGINE = EngineSpec("unet", "unet.plan", "sm89", "tensorrt-rtx", "1.7", "fp16", ("8.9",), "0", platform="linux")
HERE = Machine("8.9", {"tensorrt-rtx": "1.7"}, "linux")


@pytest.fixture(scope="module")
def bundle(demo_bundle):
    return Bundle.open(demo_bundle, verify=False)


def stand_in(name: str, device: str, usable: bool, precisions: tuple[str, ...], automatic: bool = True) -> Backend:
    def fits(bundle: Bundle, precision: str) -> Availability:
        return Availability(precision in precisions[:1], f"only {precisions[0]}")

    return Backend(
        name, name, device, precisions, automatic, lambda: Availability(usable, f"{name} reason"), fits, lambda *_: None
    )


@pytest.fixture
def listed(monkeypatch):
    def put(*entries: Backend) -> None:
        monkeypatch.setattr(backends, "BACKENDS", entries)

    return put


def test_without_a_gpu_the_processor_runs_it_exactly(bundle):
    choice = choose(bundle)
    if choice.backend.device == "cuda":
        pytest.skip("this machine has a GPU")
    assert choice.backend.name == "onnxruntime-cpu" and choice.precision == "fp32"


def test_the_first_usable_one_of_the_device_is_taken(bundle, listed):
    listed(
        stand_in("engine", "cuda", False, ("fp16",)),
        stand_in("provider", "cuda", True, ("fp32",)),
        stand_in("lean", "openvino", True, ("bf16",), automatic=False),
        stand_in("plain", "cpu", True, ("fp32",)),
    )
    assert choose(bundle).backend.name == "provider"
    assert choose(bundle, "cpu").backend.name == "plain"
    assert choose(bundle, "openvino").backend.name == "lean"
    assert [row.used for row in table(bundle)] == [False, True, False, False]
    assert table(bundle)[2].reason.endswith("used with --device openvino")


def test_a_precision_that_is_not_there_falls_through_to_the_next_backend(bundle, listed):
    listed(stand_in("engine", "cuda", True, ("fp16", "fp32")), stand_in("plain", "cpu", True, ("fp32",)))
    assert choose(bundle, precision="fp32").backend.name == "plain"
    with pytest.raises(UserError, match="nothing can run this bundle with device cuda: engine: only fp16"):
        choose(bundle, "cuda", "fp32")


@pytest.mark.parametrize(
    ("device", "precision", "sentence"),
    [
        ("gpu", None, "device 'gpu' is unknown: choose auto, cpu, cuda, openvino"),
        ("cpu", "half", "precision 'half' is unknown"),
        (
            "cpu",
            "fp16",
            "no fp16 graph of stage text_encoder .* 'consisti2v build BUNDLE --target rtx4060 --precision fp16",
        ),
    ],
)
def test_refusals(demo_bundle, device, precision, sentence):
    with pytest.raises(UserError, match=sentence):
        ImageToVideo.from_bundle(demo_bundle, verify=False, device=device, precision=precision)


@pytest.mark.parametrize(
    ("capabilities", "card", "fits"),
    [
        (("8.9",), "8.9", True),
        (("8.9",), "8.6", False),
        (("8.9",), "9.0", False),
        (("8.0+",), "8.9", True),
        (("8.0+",), "12.0", True),
        (("8.0+",), "7.5", False),
        (("8.6", "12.0"), "12.0", True),
    ],
)
def test_cards(capabilities, card, fits):
    assert runs_on(capabilities, card) is fits


@pytest.mark.parametrize(
    ("machine", "sentence"),
    [
        (HERE, None),
        (replace(HERE, versions={}), "TensorRT for RTX is not installed"),
        (replace(HERE, versions={"tensorrt-rtx": "1.8"}), "built by TensorRT for RTX 1.7, installed is 1.8"),
        (replace(HERE, platform="windows"), "built for linux, this is windows"),
        (replace(HERE, compute_capability="8.6"), "run on compute capability 8.9, this GPU has 8.6"),
    ],
)
def test_why_an_engine_does_not_fit(machine, sentence):
    reason = refusal(ENGINE, machine)
    assert reason is None if sentence is None else sentence in str(reason)


def test_an_engine_for_this_very_card_comes_first(bundle):
    portable = replace(ENGINE, target="rtx", compute_capabilities=("8.0+",))
    manifest = replace(bundle.manifest, engines=(portable, ENGINE))
    assert find_engine(manifest, "unet", "tensorrt-rtx", "fp16", HERE) is ENGINE
    newer = replace(HERE, compute_capability="12.0")
    assert find_engine(manifest, "unet", "tensorrt-rtx", "fp16", newer) is portable
    assert find_engine(manifest, "unet", "tensorrt-rtx", "fp32", HERE) is None


def test_all_stages_must_have_engines(bundle):
    some = tuple(replace(ENGINE, stage=stage) for stage in STAGES[:-1])
    found = engines_fit(replace(bundle.manifest, engines=some), "tensorrt-rtx", "fp16", HERE)
    assert not found.usable and f"lacks fp16 engines of {STAGES[-1]}" in found.reason
    every = replace(bundle.manifest, engines=(*some, replace(ENGINE, stage=STAGES[-1])))
    assert engines_fit(every, "tensorrt-rtx", "fp16", HERE).usable
    assert "--precision fp32" in engines_fit(every, "tensorrt-rtx", "fp32", HERE).reason
    assert "this GPU has 8.6" in engines_fit(every, "tensorrt-rtx", "fp16", Machine("8.6", HERE.versions)).reason


def profiled(*rows: int) -> EngineSpec:
    profiles = tuple(ProfileSpec(n, {"sample": ShapeRange((n, 4), (n, 4), (n, 4))}) for n in rows)
    return replace(ENGINE, inputs=(TensorSpec("sample", "float32", ("rows", 4)),), profiles=profiles)


def test_a_profile_for_each_guidance_batch():
    assert [choose_profile(profiled(1, 2, 3), {"rows": rows}) for rows in (1, 2, 3)] == [0, 1, 2]
    assert choose_profile(ENGINE, {"rows": 7}) == 0, "fixed sizes"
    with pytest.raises(UserError, match="built for guidance batches 1, 2, not for rows 3"):
        choose_profile(profiled(1, 2), {"rows": 3})


@pytest.mark.parametrize(("held", "asked", "taken"), [((1, 2), 3, 2), ((2, 3), 1, 2), ((1, 2, 3), 2, 2), ((), 5, 5)])
def test_the_nearest_guidance_batch_is_taken(held, asked, taken):
    assert with_nearest_rows(profiled(*held), {"rows": asked, "height": 8}) == {"rows": taken, "height": 8}


def test_micro_batches_fill_up_the_last_one():
    assert (_MicroBatches(3, 2).total, _MicroBatches(3, 2).padded) == (2, 4)
    assert (_MicroBatches(2, 2).total, _MicroBatches(1, 3).padded) == (1, 3)


def test_chunks_stay_within_a_video():
    assert chunks(2, 3, 2) == [Chunk(0, 0, 2), Chunk(0, 2, 1), Chunk(1, 0, 2), Chunk(1, 2, 1)]
    assert len(chunks(1, 16, 1)) == 16 and chunks(1, 4, 8) == [Chunk(0, 0, 4)]


def test_a_cubin_of_the_same_major_capability_and_the_same_source():
    from consisti2v_rt.kernels.cuda.compile import source_hash

    own = source_hash("noise")
    kernels = tuple(
        KernelSpec("noise", f"{c}.cubin", c, h, ()) for c, h in (("8.0", own), ("8.9", "old"), ("9.0", own))
    )
    found = {card: find_cubin(kernels, "noise", card) for card in ("8.0", "8.9", "9.0", "12.0")}
    files = {card: spec.file if spec else None for card, spec in found.items()}
    # 8.9 has only one of an older source: the one for 8.0 runs there too.
    assert files == {"8.0": "8.0.cubin", "8.9": "8.0.cubin", "9.0": "9.0.cubin", "12.0": None}
    assert find_cubin(kernels, "philox", "8.0") is None


def test_seeds_of_videos():
    assert video_seeds(7, 3) == [7, 8, 9] and video_seeds((5, -1), 2) == [5, 2**64 - 1]
