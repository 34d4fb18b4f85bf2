"""Activations in 8 bits: what is recorded of them, what is quantised, what it costs, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from consisti2v_rt.errors import UserError
from consisti2v_rt.export.events import Events
from consisti2v_rt.export.precision import calibration
from consisti2v_rt.export.precision import calibration_set as sets
from consisti2v_rt.export.precision.calibration import ActivationRange, Calibration, calibrate
from consisti2v_rt.export.precision.calibration_set import FEWEST_SAMPLES, calibration_set
from consisti2v_rt.export.precision.graph import Graph
from consisti2v_rt.export.precision.quantisation import observed_inputs
from consisti2v_rt.export.precision.recipe import VariantOptions
from consisti2v_rt.export.precision.variant import write_variant
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.media.video_file import save_frames
from consisti2v_rt.runtime.pipeline import ImageToVideo

pytestmark = pytest.mark.rare

INT8, FP8 = TensorProto.INT8, TensorProto.FLOAT8E4M3FN


def recorded(bundle: Path, precision: str = "int8") -> dict:
    return json.loads((bundle / "variants" / precision / "losses.json").read_text())["stages"]["unet"]


def write_listing(folder: Path, count: int = FEWEST_SAMPLES) -> Path:
    """Photos of noise, the last one a clip, and captions."""
    folder.mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (3, 40, 40, 3), np.uint8)
        name = f"photo-{number}.png"
        if number < count - 1:
            Image.fromarray(pixels[0]).save(folder / name)
        else:
            name = save_frames(pixels, folder / "clip.mp4")[0].name
        rows.append({"image": name, "caption": f"zoom in {number}"})
    listing = folder / "photos.jsonl"
    listing.write_text("\n".join(json.dumps(row) for row in rows))
    return listing


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_listing(tmp_path_factory.mktemp("listing") / "photos")


@pytest.fixture(scope="module")
def calibrated(demo_bundle, listing, tmp_path_factory) -> Path:
    """The bundle with its U-Net's weights and activations in INT8 and FP8, calibrated in two steps a sample; not to be
    changed.
    """
    folder = Path(shutil.copytree(demo_bundle, tmp_path_factory.mktemp("int8") / "bundle"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets, "STEPS", 2)
        phases: list[str] = []
        options = VariantOptions(calibration=calibration_set(str(listing)), quick_check=True)
        for precision in ("int8", "fp8"):
            write_variant(folder, precision, ["unet"], options, Events(phase=phases.append))
    samples = [phase for phase in phases if phase.startswith("calibrating")]
    assert samples == [f"calibrating on sample {number} of 4" for number in range(1, 5)] * 2
    return folder


# -- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "kind"), [("int8", INT8), ("fp8", FP8)])
def test_products_read_eight_bits(calibrated, precision, kind):
    """Every large product of the U-Net but those of the residual stream and the border; no product of activations."""
    spec = Bundle.open(calibrated).manifest.variants[precision]["unet"]
    model = onnx.load(str(calibrated / spec.file))
    producers = {name: node for node in model.graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    observed = observed_inputs(Graph(calibrated / "unet" / "unet.onnx"))
    narrowed = set()
    for node in model.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        source = producers.get(node.input[0])
        if source is None or source.op_type != "DequantizeLinear":
            continue
        quantise = producers[source.input[0]]
        assert quantise.op_type == "QuantizeLinear" and quantise.input[1] == source.input[1]
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in quantise.attribute}
        assert attributes == {"output_dtype": kind}
        scale = numpy_helper.to_array(weights[source.input[1]])
        assert scale.dtype == np.float16 and scale.shape == () and scale > 0
        # Its weight is in 8 bits too: a product of one kind of number.
        assert weights[producers[node.input[1]].input[0]].data_type == kind
        narrowed.add(quantise.input[0].removesuffix("_float16"))
    assert narrowed == set(observed) and len(observed) > 50
    assert recorded(calibrated, precision)["graph"]["quantised_activations"] == len(observed)


def test_the_residual_stream_keeps_half_precision(demo_bundle):
    """Inputs of shortcuts over a concatenated skip, and of resampling, are none of the observed."""
    graph = Graph(demo_bundle / "unet" / "unet.onnx")
    producers = {value.name: node for node in graph.body for value in node.outputs}
    observed = set(observed_inputs(graph))
    assert not {producers[name].op_type for name in observed if name in producers} & {"Concat"}
    convolutions = [node for node in graph.body if node.op_type == "Conv"]
    shortcuts = [node for node in convolutions if "shortcut" in node.inputs[1].name]
    assert len(shortcuts) > 3 and not observed & {node.inputs[0].name for node in shortcuts}
    resampling = [node for node in convolutions if "downsamplers" in node.inputs[1].name]
    assert resampling and not observed & {node.inputs[0].name for node in resampling}


def test_loss_and_set_are_recorded(calibrated, listing, demo_bundle):
    spec = Bundle.open(calibrated).manifest.variants["int8"]["unet"]
    given = calibration_set(str(listing))
    assert spec.calibration is not None and spec.calibration.name == "photos.jsonl"
    assert (spec.calibration.sha256, spec.calibration.samples, spec.calibration.steps) == (given.sha256, 4, 2)
    entry = recorded(calibrated)
    assert entry["source"]["calibration"]["sha256"] == given.sha256 and entry["source"]["quick_check"] is True
    assert [(loss["seed"], loss["rows"]) for loss in entry["losses"]] == [(0, 2)]
    # Weights alone lose 1.0e-2 here, activations a few times that; far more would be a scale that is wrong.
    assert 1e-2 < entry["losses"][0]["relative_l2"] < 1e-1
    assert entry["activations"]["loss_of_those_left"] == {}
    assert all(stage.calibration is None for stage in Bundle.open(demo_bundle).manifest.stages.values())


def test_inspect_shows_it(calibrated, consisti2v):
    said = " ".join(consisti2v("inspect", calibrated).stdout.replace("│", " ").split())
    entry = recorded(calibrated)
    loss, count = entry["losses"][0]["relative_l2"], entry["graph"]["quantised_activations"]
    assert f"{loss:.1e} (1 seed, batch 2) {count}, calibrated on photos.jsonl (4 samples, 2 steps each)" in said
    assert "int8, experimental unet" in said and "fp8, experimental unet" in said


def test_video_of_the_calibrated_bundle(calibrated, photo):
    """The graph itself runs: 8-bit activations are no noise."""
    frames = [
        ImageToVideo.from_bundle(calibrated, device="cpu", precision=precision, threads=1, verify=False)(
            photo, "a cat", num_inference_steps=2, seed=3
        ).frames.astype(np.float64)
        for precision in ("fp32", "int8")
        if precision == "fp32" or _complete(calibrated)
    ]
    error = np.mean((frames[0] - frames[-1]) ** 2)
    assert error > 0 and 10 * np.log10(255**2 / error) > 20


def _complete(bundle: Path) -> bool:
    """A precision runs with all its stages: the others take seconds."""
    write_variant(bundle, "int8", None, VariantOptions(quick_check=True))
    return set(Bundle.open(bundle).manifest.variants["int8"]) == set(Bundle.open(bundle).manifest.stages)


def test_kept_until_asked_otherwise(demo_bundle, tmp_path, listing, monkeypatch):
    """A build for another card must not take the calibration away; "off" does, another listing replaces it."""
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    calls: list[str] = []

    def instead(opened, samples, on_sample):
        calls.append(samples.sha256)
        names = observed_inputs(Graph(opened.file("unet/unet.onnx")))
        ranges = {name: ActivationRange() for name in names}
        for found in ranges.values():
            found.add(4.0, np.linspace(-4, 4, 100, dtype=np.float32))
        return Calibration(samples.spec, ranges)

    monkeypatch.setattr("consisti2v_rt.export.precision.variant.calibrate", instead)
    seen = []

    def build(**options):
        write_variant(
            bundle, "int8", ["unet"], VariantOptions(quick_check=True, **options), Events(variant=seen.append)
        )
        return seen[-1].skipped, seen[-1].quantised_activations > 0

    first = calibration_set(str(listing))
    assert build() == (False, False)
    assert build(calibration=first) == (False, True)
    assert build() == build(calibration=first) == (True, True)
    other = calibration_set(str(write_listing(tmp_path / "other", 5)))
    assert build(calibration=other) == (False, True)
    with pytest.raises(UserError, match=r"calibrated on photos\.jsonl and must be written or checked anew: pass --cal"):
        write_variant(bundle, "int8", ["unet"])  # the whole check: it was a quick one
    assert build(weight_only=True) == (False, False) and build(weight_only=True) == (True, False)
    assert calls == [first.sha256, other.sha256]
    Bundle.open(bundle)


def test_activations_that_are_not_finite_are_told(demo_bundle, tmp_path, listing, monkeypatch):
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))

    def infinite(opened, samples, on_sample):
        broken = ActivationRange()
        broken.add(float("inf"), np.zeros(3, np.float32))
        return Calibration(samples.spec, {"x": broken})

    monkeypatch.setattr("consisti2v_rt.export.precision.variant.calibrate", infinite)
    options = VariantOptions(calibration=calibration_set(str(listing)))
    with pytest.raises(UserError, match=r"calibration on photos\.jsonl fails .* not finite in float32"):
        write_variant(bundle, "int8", ["unet"], options)


def test_activations_that_cost_most_stay_in_half_precision(demo_bundle, tmp_path, listing, monkeypatch):
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    monkeypatch.setattr(sets, "STEPS", 1)
    limit = 2.5e-2
    options = VariantOptions(calibration=calibration_set(str(listing)), max_loss=limit, quick_check=True)
    write_variant(bundle, "int8", ["unet"], options)
    entry = recorded(bundle)
    kept = entry["activations"]
    assert 0 < kept["quantised"] < kept["of"] and kept["quantised"] == entry["graph"]["quantised_activations"]
    assert entry["losses"][0]["relative_l2"] <= limit
    assert len(kept["loss_of_those_left"]) == kept["of"] - kept["quantised"]
    # What weights alone cost cannot be kept by leaving activations out.
    with pytest.raises(UserError, match=r"unet in int8 differs from float32 by 1.* .allowed 1e-03.: use fp16 or fp32"):
        write_variant(bundle, "int8", ["unet"], VariantOptions(max_loss=1e-3, weight_only=True, quick_check=True))
    assert recorded(bundle) == entry


# -- the parts -------------------------------------------------------------------------------------------------------


def test_what_is_noted_is_what_the_graph_holds(demo_bundle, tmp_path, listing, monkeypatch):
    """One activation, noted by the added outputs and read from the graph itself: same largest value."""
    monkeypatch.setattr(sets, "STEPS", 1)
    bundle = Bundle.open(Path(shutil.copytree(demo_bundle, tmp_path / "bundle")))
    spec = bundle.manifest.stages["unet"]
    name = observed_inputs(Graph(bundle.file(spec.file)))[-1]
    taken: list[np.ndarray] = []
    real = calibration.ObservedSession

    class Reading(real):
        def run(self) -> None:
            super().run()
            taken.append(read(self.inputs))

    def read(inputs):
        import onnxruntime

        model = onnx.load(str(bundle.file(spec.file)))
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run([name], inputs)[0]

    monkeypatch.setattr(calibration, "ObservedSession", Reading)
    before = sorted(bundle.path.rglob("*"))
    found = calibrate(bundle, calibration_set(str(listing)), lambda done, total: None).ranges[name]
    assert len(taken) == FEWEST_SAMPLES
    assert found.largest == pytest.approx(max(np.abs(values).max() for values in taken), rel=1e-5)
    assert len(found.values) < sum(values.size for values in taken)
    assert found.values.std() == pytest.approx(np.concatenate([v.ravel() for v in taken]).std(), rel=0.05)
    assert sorted(bundle.path.rglob("*")) == before


# -- refusals --------------------------------------------------------------------------------------------------------


def test_refused_sets(consisti2v, demo_bundle, tmp_path):
    def refusal(listing: Path | str, precision: str = "int8", *more: str) -> str:
        return consisti2v(
            *("build", demo_bundle, "--target", "sm89", "--precision", precision, "--calibrate", listing), *more
        ).refusal()

    assert "does not exist: give a UTF-8 .csv or .jsonl" in refusal(tmp_path / "none.jsonl")
    few = write_listing(tmp_path / "few", FEWEST_SAMPLES - 1)
    assert f"has 3 rows: calibration needs at least {FEWEST_SAMPLES} photos" in refusal(few)
    bad = tmp_path / "bad.jsonl"
    bad.write_text("photo.jpg, zoom in\n")
    assert "line 1 is not a JSON object" in refusal(bad)
    good = write_listing(tmp_path / "good")
    (tmp_path / "good" / "photo-1.png").write_bytes(b"no photo")
    assert "photo-1.png" in refusal(good)
    (tmp_path / "good" / "notes.txt").write_text("words")
    good.write_text(good.read_text().replace("photo-1.png", "notes.txt"))
    assert "names notes.txt, which is neither a photo nor a clip" in refusal(good)
    assert "calibration is for activations in 8 bits, not for fp16: choose int8 or fp8" in refusal("demo", "fp16")
    assert "calibration is of stage unet" in refusal("demo", "int8", "--stages", "vae_decoder")
    assert "are for other precisions" in refusal("demo", "fp32")
    assert "between 0 and 1, not 2.0" in refusal("demo", "int8", "--max-loss", "2")


def test_interrupted_calibration_leaves_nothing(demo_bundle, tmp_path, listing):
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    before = sorted(bundle.rglob("*"))

    def interrupt(phase: str) -> None:
        if phase.startswith("calibrating on sample 2"):
            raise KeyboardInterrupt

    options = VariantOptions(calibration=calibration_set(str(listing)))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sets, "STEPS", 1)
        write_variant(bundle, "int8", ["unet"], options, Events(phase=interrupt))
    assert sorted(bundle.rglob("*")) == before


def test_the_demo_set():
    demo = calibration_set("demo")
    assert len(demo.samples) >= FEWEST_SAMPLES and demo.sha256 == calibration_set("demo").sha256
    assert len({caption for _, caption in demo.samples}) == len(demo.samples)
