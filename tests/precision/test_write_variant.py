"""``write_variant``: losses, refusals that leave nothing, what is skipped and what is written anew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from consisti2v_rt.errors import UserError
from consisti2v_rt.export.bundle_parts import rewrite_manifest
from consisti2v_rt.export.events import Events
from consisti2v_rt.export.precision import recipe, variant
from consisti2v_rt.export.precision.calibration_set import calibration_set
from consisti2v_rt.export.precision.quantisation import channel_scales
from consisti2v_rt.export.precision.recipe import VariantOptions
from consisti2v_rt.export.precision.variant import write_variant
from consisti2v_rt.runtime.backends import choose
from consisti2v_rt.runtime.bundle.bundle import Bundle, hash_files
from consisti2v_rt.runtime.pipeline import ImageToVideo
from consisti2v_rt.runtime.session import OnnxCpuSession

pytestmark = pytest.mark.rare


def recorded(bundle: Path, precision: str) -> dict:
    return json.loads((bundle / "variants" / precision / "losses.json").read_text())["stages"]


def test_fp16_of_every_stage_is_near_float32(fp16_bundle):
    bundle = Bundle.open(fp16_bundle)
    assert list(bundle.manifest.variants["fp16"]) == list(bundle.manifest.stages)
    for stage, entry in recorded(fp16_bundle, "fp16").items():
        assert [loss["seed"] for loss in entry["losses"]] == [0, 1, 2], stage
        assert all(0 < loss["relative_l2"] < 5e-3 for loss in entry["losses"]), stage
    assert {loss["rows"] for loss in recorded(fp16_bundle, "fp16")["unet"]["losses"]} == {2}


def test_residual_sums_stay_in_float32_where_the_limit_asks_for_it(bundle, consisti2v):
    """Nothing of it within the limit; a tighter one is kept with them, or nothing is written."""
    write_variant(bundle, "fp16", ["unet"])
    plain = recorded(bundle, "fp16")["unet"]
    assert plain["graph"]["float32_sums"] == 0
    limit = 0.999 * max(loss["relative_l2"] for loss in plain["losses"])
    seen = []
    spec = write_variant(bundle, "fp16", ["unet"], VariantOptions(max_loss=limit), events=Events(variant=seen.append))[
        "unet"
    ]
    wide = recorded(bundle, "fp16")["unet"]
    assert wide["graph"]["float32_sums"] == seen[0].float32_sums > 10
    assert max(loss["relative_l2"] for loss in wide["losses"]) <= limit
    assert f"batch 2), {wide['graph']['float32_sums']} residual sums in float32" in consisti2v("inspect", bundle).stdout
    model = onnx.load(str(bundle / spec.file))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    sums = [n for n in model.graph.node if n.op_type == "Add" and types.get(n.output[0]) == TensorProto.FLOAT]
    assert len(sums) >= wide["graph"]["float32_sums"]
    products = [node for node in model.graph.node if node.op_type in ("Conv", "Attention")]
    assert {types[node.output[0]] for node in products if node.output[0] in types} == {TensorProto.FLOAT16}
    before = (bundle / "bundle.json").read_bytes()
    with pytest.raises(UserError, match=r"differs from float32 by .* relative L2"):
        write_variant(bundle, "fp16", ["unet"], VariantOptions(max_loss=1e-4))
    assert (bundle / "bundle.json").read_bytes() == before


def test_border_types_are_in_the_manifest(fp16_bundle):
    specs = Bundle.open(fp16_bundle).manifest.variants["fp16"]
    types = {t.name: t.dtype for spec in specs.values() for t in (*spec.inputs, *spec.outputs)}
    halves = {name for name, dtype in types.items() if dtype == "float16"}
    assert halves and all(name.endswith((".key", ".value")) for name in halves)
    assert types["text_embeddings"] == types["noise_pred"] == types["image"] == "float32"


def test_video_of_the_fp16_bundle(fp16_bundle, photo):
    """The whole pipeline on the CPU, same noise: the limit of the project is 35 dB."""
    videos = [
        ImageToVideo.from_bundle(fp16_bundle, device="cpu", precision=precision, threads=1)(
            photo, "a cat turns its head", num_inference_steps=2, seed=3
        ).frames.astype(np.float64)
        for precision in ("fp32", "fp16")
    ]
    error = np.mean((videos[0] - videos[1]) ** 2)
    assert error > 0 and 10 * np.log10(255**2 / error) > 35


def test_bf16_is_refused_on_the_processor(bundle):
    spec = write_variant(bundle, "bf16", ["conditioning"])["conditioning"]
    assert {t.dtype for t in spec.outputs} == {"bfloat16"} and spec.inputs[0].dtype == "float32"
    # Eight bits of mantissa instead of eleven: worse than fp16 by about 8, better than nothing.
    worst = max(loss["relative_l2"] for loss in recorded(bundle, "bf16")["conditioning"]["losses"])
    assert 1e-3 < worst < 1e-2
    with pytest.raises(UserError, match="no bf16 operators for the processor"):
        OnnxCpuSession(bundle / spec.file, spec)
    with pytest.raises(UserError, match="not bf16"):
        choose(Bundle.open(bundle), "cpu", "bf16")


@pytest.mark.parametrize(
    ("precision", "kind", "limit"), [("int8", TensorProto.INT8, 2e-2), ("fp8", TensorProto.FLOAT8E4M3FN, 5e-2)]
)
def test_quantised_weights(bundle, precision, kind, limit):
    """Every projection of the text is in 8 bits, each channel within half a step of the float32 weight."""
    spec = write_variant(bundle, precision, ["conditioning"])["conditioning"]
    plain = weights_of(bundle / "conditioning" / "conditioning.onnx")
    model = onnx.load(str(bundle / spec.file))
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    dequantise = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert {node.output[0] for node in dequantise} == {node.input[1] for node in products} and len(products) == 14
    for node in dequantise:
        quantised, scales = held[node.input[0]], numpy_helper.to_array(held[node.input[1]]).astype(np.float32)
        assert quantised.data_type == kind
        values = numpy_helper.to_array(quantised).astype(np.float32) * scales
        exact = plain[node.input[0].split("_float16_")[0]]
        # Half a step of 127 for INT8; half of the last of E4M3's 3 bits, at most a sixteenth of each value, for FP8.
        step = 0.5 * scales if precision == "int8" else np.abs(exact) / 16 + scales * 2**-10
        assert (np.abs(values - exact) <= step * 1.001).all()
    worst = max(loss["relative_l2"] for loss in recorded(bundle, precision)["conditioning"]["losses"])
    assert 1e-3 < worst < limit
    assert recorded(bundle, precision)["conditioning"]["graph"]["quantised_weights"] == 14


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}


@pytest.mark.parametrize("largest", [127.0, 448.0])
def test_scales_clip_nothing_and_are_never_zero(largest):
    values = np.random.default_rng(0).standard_normal((7, 50)).astype(np.float32) * 10.0 ** np.arange(-5, 2)[:, None]
    values[3] = 0
    scales = channel_scales(values, 0, largest)
    assert scales.dtype == np.float16 and (scales > 0).all()
    assert (np.abs(values).max(axis=1) <= scales.astype(np.float64) * largest).all()
    assert np.isfinite(values.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)).all()


# -- what is written when --------------------------------------------------------------------------------------------


def test_written_once(bundle, listing):
    write_variant(bundle, "fp16", ["vae_encoder"])
    before = {path: path.stat().st_mtime_ns for path in bundle.rglob("*")}
    seen = []
    write_variant(bundle, "fp16", ["vae_encoder"], events=Events(variant=seen.append))
    assert [variant.skipped for variant in seen] == [True] and seen[0].relative_l2 < 5e-3
    assert {path: path.stat().st_mtime_ns for path in bundle.rglob("*")} == before


def test_stages_join_those_written_before(bundle):
    write_variant(bundle, "fp16", ["vae_decoder"])
    write_variant(bundle, "fp16", ["conditioning", "vae_decoder"])
    write_variant(bundle, "int8", ["conditioning"])
    manifest = Bundle.open(bundle).manifest
    assert list(manifest.variants["fp16"]) == ["conditioning", "vae_decoder"]
    assert list(manifest.variants["int8"]) == ["conditioning"]
    assert set(recorded(bundle, "fp16")) == {"conditioning", "vae_decoder"}


def test_written_anew_for_other_weights(bundle, change_weight):
    write_variant(bundle, "fp16", ["vae_encoder", "conditioning"])
    written = bundle / "variants/fp16/vae_encoder/vae_encoder.onnx"  # holds small weights itself
    old = written.read_bytes()
    change_weight(bundle, "vae_encoder", "vae.encoder.conv_in.weight", 1.5)
    seen = []
    write_variant(bundle, "fp16", ["vae_encoder", "conditioning"], events=Events(variant=seen.append))
    assert [variant.skipped for variant in seen] == [False, True]
    assert written.read_bytes() != old
    Bundle.open(bundle)


@pytest.mark.parametrize("rehash", [False, True], ids=["altered", "recorded as it is"])
@pytest.mark.parametrize("content", [b"{", b"[]", b'{"stages": 1}', b"\xff"])
def test_a_damaged_record_counts_as_none(bundle, content, rehash):
    write_variant(bundle, "fp16", ["conditioning"])
    path = bundle / "variants/fp16/losses.json"
    size = path.stat().st_size
    path.write_bytes(content.ljust(size))
    if rehash:
        record = hash_files(bundle, ["variants/fp16/losses.json"])
        rewrite_manifest(bundle, lambda manifest: replace(manifest, files=manifest.files | record))
    seen = []
    write_variant(bundle, "fp16", ["conditioning"], events=Events(variant=seen.append))
    assert [report.skipped for report in seen] == [False] and set(recorded(bundle, "fp16")) == {"conditioning"}
    Bundle.open(bundle).verify()


def test_a_calibration_with_a_damaged_record_is_not_dropped(bundle):
    """It takes hours at full size: the manifest says that there is one, and it is asked for."""
    write_variant(bundle, "int8", ["unet"], VariantOptions(calibration_set("demo"), quick_check=True))
    path = bundle / "variants/int8/losses.json"
    path.write_bytes(b"{".ljust(path.stat().st_size))
    before = (bundle / "bundle.json").read_bytes()
    for lost in (path, bundle / "variants/int8/unet/unet.onnx"):
        with pytest.raises(UserError, match="is calibrated on demo and must be written"):
            write_variant(bundle, "int8", ["unet"], VariantOptions(quick_check=True))
        assert (bundle / "bundle.json").read_bytes() == before
        lost.unlink()


def test_same_bytes_twice(bundle, fp16_bundle):
    write_variant(bundle, "fp16", ["vae_decoder", "conditioning"])
    for stage in ("vae_decoder", "conditioning"):
        for file in (f"{stage}.onnx", f"{stage}.onnx.data"):
            name = f"variants/fp16/{stage}/{file}"
            assert (bundle / name).read_bytes() == (fp16_bundle / name).read_bytes()


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "stages", "sentence"),
    [
        ("fp32", None, "fp32 is the bundle as exported"),
        ("fp15", None, "precision 'fp15' is not one of fp16, bf16, int8, fp8"),
        ("fp16", ["unet", "decoder"], "no stage 'decoder': choose of text_encoder"),
    ],
)
def test_unknown_names(bundle, listing, precision, stages, sentence):
    before = listing(bundle)
    with pytest.raises(UserError, match=sentence):
        write_variant(bundle, precision, stages)
    assert listing(bundle) == before


@pytest.mark.parametrize(
    ("factor", "sentence"),
    [(1e6, "weight .*conv_in.* does not fit this precision"), (3e5, "stage vae_encoder overflows or dies in fp16")],
    ids=["weights beyond float16", "activations beyond float16"],
)
def test_what_float16_cannot_hold_is_refused(bundle, listing, change_weight, factor, sentence):
    change_weight(bundle, "vae_encoder", "vae.encoder.conv_in.weight", factor)
    before = listing(bundle)
    with pytest.raises(UserError, match=sentence):
        write_variant(bundle, "fp16", ["vae_encoder"])
    assert listing(bundle) == before
    write_variant(bundle, "bf16", ["vae_encoder"])


def test_too_far_from_float32_is_refused(bundle, listing, monkeypatch):
    before = listing(bundle)
    exact = variant.run_variant
    shifted = lambda *given: [{k: v * np.float32(1.006) for k, v in out.items()} for out in exact(*given)]  # noqa: E731
    monkeypatch.setattr(variant, "run_variant", shifted)
    with pytest.raises(UserError, match=r"differs from float32 by 6.* relative L2 .allowed 5e-03."):
        write_variant(bundle, "fp16", ["conditioning"])
    assert listing(bundle) == before


def test_damaged_source_is_refused(bundle, listing):
    path = bundle / "conditioning" / "conditioning.onnx.data"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    before = listing(bundle)
    with pytest.raises(UserError, match=r"conditioning\.onnx\.data was altered"):
        write_variant(bundle, "fp16", ["conditioning"])
    assert listing(bundle) == before


@pytest.mark.parametrize(
    "fails", [(variant, "convert"), (variant, "with_stages")], ids=["while writing", "at the last step"]
)
@pytest.mark.parametrize("held", [(), ("conditioning", "vae_decoder")], ids=["first", "replacing"])
def test_full_disk_leaves_the_bundle_as_it_was(bundle, listing, monkeypatch, held, fails):
    if held:
        write_variant(bundle, "fp16", held)
        monkeypatch.setattr(recipe, "RECIPE_VERSION", 1000)  # as if other rules had written them
    before, manifest = listing(bundle), (bundle / "bundle.json").read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*fails, full)
    with pytest.raises(UserError, match=r"cannot be written .*No space left"):
        write_variant(bundle, "fp16", ["vae_decoder"])
    assert listing(bundle) == before and (bundle / "bundle.json").read_bytes() == manifest
    Bundle.open(bundle)


def test_interrupt_leaves_nothing(bundle, listing):
    before = listing(bundle)

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_variant(bundle, "fp16", ["conditioning", "vae_decoder"], events=Events(variant=interrupt))
    assert listing(bundle) == before
