"""Checkpoint -> bundle: sources of weights, sizes, guidance batches, dynamic sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import save_file  # noqa: E402

from consisti2v_rt import ImageToVideo, UserError  # noqa: E402
from consisti2v_rt.export import loading, onnx_graph  # noqa: E402
from consisti2v_rt.export.onnx_graph import OPSET, compare_with_torch, stage_spec, torch_reference, write_graph  # noqa: E402
from consisti2v_rt.export.precision.cases import Cases  # noqa: E402
from consisti2v_rt.export.precision.variant import write_variant  # noqa: E402
from consisti2v_rt.export.random_model import random_model  # noqa: E402
from consisti2v_rt.export.random_options import TINY_UNET  # noqa: E402
from consisti2v_rt.export.stages import dynamic_sizes, stages  # noqa: E402
from consisti2v_rt.export.unet_stages import StageExport  # noqa: E402
from consisti2v_rt.runtime.bundle.bundle import Bundle  # noqa: E402
from consisti2v_rt.runtime.bundle.manifest import RecommendedSettings  # noqa: E402
from consisti2v_rt.runtime.session import OnnxCpuSession  # noqa: E402

PHOTO = Path(__file__).parents[1] / "assets" / "example.jpg"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """The tiny model in diffusers layout."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = random_model("tiny")
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "any", **TINY_UNET}))
    state = {key: value.contiguous() for key, value in model.unet.state_dict().items()}
    save_file(state, folder / "unet" / "diffusion_pytorch_model.safetensors")
    model.vae.save_pretrained(folder / "vae")
    model.text_encoder.save_pretrained(folder / "text_encoder")
    model.tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    return folder


def same_weights(unet, checkpoint: Path) -> bool:
    expected = loading.read_weights(checkpoint / "unet")
    # The folder holds folded weights already (gates 0): folding them again changes nothing.
    return all(torch.equal(value, expected[key]) for key, value in unet.state_dict().items())


@pytest.mark.slow
def test_folder_in_diffusers_layout(checkpoint):
    model = loading.load_model(checkpoint)
    assert same_weights(model.unet, checkpoint)
    assert model.trained and model.licence == "mit" and model.scheduler.beta_schedule == "linear"
    assert model.tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


@pytest.mark.slow
def test_recommended_settings_of_a_checkpoint(checkpoint, tmp_path):
    assert loading.load_model(checkpoint).recommended == RecommendedSettings()
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    (folder / "recommended.json").write_text('{"guidance_scale_txt": 3, "known_prompts": ["zoom in"]}')
    expected = RecommendedSettings(guidance_scale_txt=3, known_prompts=("zoom in",))
    assert loading.load_model(folder).recommended == expected
    for text, says in (
        ("[1]", "does not hold a JSON object"),
        ("{", "not valid JSON"),
        ('{"guidance": 1}', "'guidance' cannot be recommended: did you mean guidance_"),
        ('{"num_inference_steps": 5000}', "recommended num_inference_steps 5000 is not possible"),
    ):
        (folder / "recommended.json").write_text(text)
        with pytest.raises(UserError, match=says) as caught:
            loading.load_model(folder)
        assert str(folder / "recommended.json") in str(caught.value)


@pytest.mark.rare
def test_the_bundle_carries_what_its_checkpoint_and_the_command_recommend(consisti2v, checkpoint, tmp_path):
    folder = Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))
    (folder / "recommended.json").write_text('{"guidance_scale_txt": 3, "num_inference_steps": 20}')
    options = ("--height", 64, "--width", 64, "--recommend", "num_inference_steps=8", "--recommend", "scheduler=unipc")
    outcome = consisti2v("export", folder, "-o", tmp_path / "bundle", *options)
    assert outcome.code == 0, outcome.stderr
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.recommended == RecommendedSettings(
        guidance_scale_txt=3.0, num_inference_steps=8, scheduler="unipc"
    )


@pytest.mark.parametrize(
    ("recommend", "says"),
    [
        ("num_inference_steps", "is not name=value"),
        ("num_inference_steps=0", "--recommend: recommended num_inference_steps 0 is not possible"),
        ("steps=8", "--recommend: setting 'steps' cannot be recommended"),
        ("scheduler=heun", "choose ddim"),
    ],
)
def test_a_wrong_recommendation_is_refused_before_the_model_is_loaded(consisti2v, tmp_path, recommend, says):
    outcome = consisti2v("export", tmp_path / "no model", "-o", tmp_path / "bundle", "--recommend", recommend)
    assert says in outcome.refusal() and not (tmp_path / "bundle").exists()


def test_training_checkpoint_with_prefix(checkpoint, tmp_path):
    weights = {f"module.{key}": value for key, value in loading.read_weights(checkpoint / "unet").items()}
    torch.save({"epoch": 3, "global_step": 9, "state_dict": weights}, tmp_path / "checkpoint.ckpt")
    assert same_weights(loading.load_model(checkpoint, unet_checkpoint=tmp_path / "checkpoint.ckpt").unet, checkpoint)


def test_sharded_and_pickled_weights(checkpoint, tmp_path):
    weights = loading.read_weights(checkpoint / "unet")
    names = sorted(weights)
    halves = {"a.safetensors": names[:100], "b.safetensors": names[100:]}
    for file, part in halves.items():
        save_file({key: weights[key] for key in part}, tmp_path / file)
    index = {"weight_map": {key: file for file, part in halves.items() for key in part}}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert loading.read_weights(tmp_path).keys() == weights.keys()
    (tmp_path / "pickled").mkdir()
    torch.save(weights, tmp_path / "pickled" / "diffusion_pytorch_model.bin")
    assert loading.read_weights(tmp_path / "pickled").keys() == weights.keys()


def test_half_precision_weights_become_float32(checkpoint):
    weights = {key: value.half() for key, value in loading.read_weights(checkpoint / "unet").items()}
    unet = loading.build_unet(TINY_UNET, weights)
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}


def test_absent_dead_keys_leave_no_empty_tensors(checkpoint):
    weights = {k: v for k, v in loading.read_weights(checkpoint / "unet").items() if "rotary_bias" not in k}
    unet = loading.build_unet(TINY_UNET, weights)
    assert not any(parameter.is_meta for parameter in unet.parameters())


class Exploit:
    """A pickle that would run code when loaded."""

    def __reduce__(self):
        return (print, ("executed",))


def test_refusals(checkpoint, tmp_path, capsys):
    torch.save({"state_dict": Exploit()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="cannot be read as weights"):
        loading.load_model(checkpoint, unet_checkpoint=tmp_path / "evil.ckpt")
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(UserError, match="lacks the folder unet"):
        loading.load_model(tmp_path)
    with pytest.raises(UserError, match="neither a folder nor a hub id"):
        loading.load_model("no such folder")
    with pytest.raises(UserError, match="does not exist"):
        loading.read_weights(tmp_path / "absent.safetensors")


@pytest.mark.slow
def test_hub_id_goes_through_the_hub(checkpoint, monkeypatch):
    asked = {}

    def snapshot_download(name, **options):
        asked.update(name=name, **options)
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    model = loading.load_model("TIGER-Lab/ConsistI2V", revision="main")
    assert asked["name"] == "TIGER-Lab/ConsistI2V" and asked["revision"] == "main"
    assert "unet/*" in asked["allow_patterns"] and model.source == "TIGER-Lab/ConsistI2V"


@pytest.mark.slow
def test_a_written_bundle(tiny_bundle):
    manifest = Bundle.open(tiny_bundle).manifest
    assert manifest.model.rows == 2 and not manifest.model.trained
    assert (manifest.model.height, manifest.model.width) == (64, 48)
    assert {stage.opset for stage in manifest.stages.values()} == {OPSET}
    for stage in manifest.stages.values():
        assert (tiny_bundle / f"{stage.file}.data").is_file(), "weights are external data"
    text = b"".join(path.read_bytes() for path in tiny_bundle.rglob("*.onnx"))
    assert b"site-packages" not in text, "no paths of the exporting machine"
    unet, conditioning = manifest.stages["unet"], manifest.stages["conditioning"]
    assert {spec.name for spec in conditioning.outputs} < {spec.name for spec in unet.inputs}


def unet_stage(model, height, width, rows, dynamic, seed=0) -> StageExport:
    return next(s for s in stages(model, height, width, rows, dynamic, seed) if s.name == "unet")


@pytest.mark.rare
@pytest.mark.parametrize(
    ("changes", "rows"),
    [
        # Latents of 9 x 7: the upsampler meets the skip's odd size.
        ({"temp_pos_embedding": "sinusoidal", "augment_temporal_attention": False, "n_frames": 5}, 3),
        ({"use_frame_stride_condition": False, "n_frames": 2, "layers_per_block": 2}, 1),
    ],
    ids=["sinusoidal-no-window-odd-size-both", "no-stride-2-frames-none"],
)
def test_other_shapes_of_the_unet(changes, rows, tmp_path):
    """The comparison with torch is the exporter's own, and refuses over 2e-5."""
    options = tmp_path / "options.json"
    options.write_text(json.dumps({**TINY_UNET, **changes}))
    stage = unet_stage(random_model(str(options)), 72, 56, rows, dynamic=False)
    reference = torch_reference(stage)
    write_graph(stage, tmp_path / "unet.onnx", {})
    spec = stage_spec(stage, reference, "unet.onnx", "fp32")
    assert compare_with_torch(tmp_path / "unet.onnx", spec, reference).relative_l2 < 2e-5


@pytest.mark.slow
def test_a_damaged_graph_is_refused(tmp_path):
    """Weights changed after the export: the comparison must see it."""
    model = random_model("tiny")
    stage = next(stages(model, 64, 64, 2, False))
    reference = torch_reference(stage)
    write_graph(stage, tmp_path / "text_encoder.onnx", {})
    spec = stage_spec(stage, reference, "text_encoder.onnx", "fp32")
    reference.outputs["text_embeddings"] = reference.outputs["text_embeddings"] * 1.001
    with pytest.raises(UserError, match="differs from torch"):
        compare_with_torch(tmp_path / "text_encoder.onnx", spec, reference)
    reference.outputs["text_embeddings"] = np.full_like(reference.outputs["text_embeddings"], np.nan)
    with pytest.raises(UserError, match="not finite"):
        compare_with_torch(tmp_path / "text_encoder.onnx", spec, reference)


@pytest.mark.slow
def test_rounding_is_told_from_a_wrong_graph(tmp_path, monkeypatch):
    """Above the fixed limit, torch in float64 says whether the graph is as near as torch's own float32 is."""
    stage = next(stages(random_model("tiny"), 64, 64, 2, False))
    reference = torch_reference(stage)
    path = tmp_path / "text_encoder.onnx"
    write_graph(stage, path, {})
    spec = stage_spec(stage, reference, path.name, "fp32")
    before = {name: value.clone() for name, value in stage.module.state_dict().items()}
    assert compare_with_torch(path, spec, reference, stage).torch_noise is None
    monkeypatch.setattr(onnx_graph, "PARITY_LIMIT", {"fp32": 1e-12})
    parity = compare_with_torch(path, spec, reference, stage)
    assert 0 < parity.graph_noise <= 2 * parity.torch_noise < 1e-5
    assert all(
        value.dtype == before[name].dtype and torch.equal(value, before[name])
        for name, value in stage.module.state_dict().items()
    )
    with torch.no_grad():
        stage.module.text_encoder.get_input_embeddings().weight *= 1.00001
    wrong = torch_reference(stage)
    with pytest.raises(UserError, match=r"text_encoder at 64x64 pixels differs .* this is no rounding"):
        compare_with_torch(path, spec, wrong, stage, "64x64")
    monkeypatch.setattr(onnx_graph, "LARGEST_NOISE", 1e-12)
    with pytest.raises(UserError, match=r"float32 does not hold this stage"):
        compare_with_torch(path, spec, reference, stage, "64x64")


def test_every_stage_runs_in_float64():
    """What the comparison needs where rounding is large; float32 weights come back as they were."""
    for stage in stages(random_model("tiny"), 32, 32, 2, False, cache_branch=0):
        reference = torch_reference(stage)
        exact = onnx_graph._float64_outputs(stage, reference)
        for name, expected in reference.outputs.items():
            assert exact[name].dtype == np.float64
            assert np.linalg.norm(exact[name] - expected) < 1e-4 * np.linalg.norm(expected)
        again = torch_reference(stage)
        assert all(np.array_equal(again.outputs[name], reference.outputs[name]) for name in reference.outputs)


@pytest.mark.rare
def test_dynamic_bundle(dynamic_bundle):
    """One graph for every batch and size; compared with torch at another size than it was traced at."""
    bundle = dynamic_bundle
    manifest = Bundle.open(bundle).manifest
    assert manifest.model.rows is None and manifest.model.dynamic_size_multiple == 16
    again = unet_stage(random_model("tiny"), 48, 96, 3, dynamic=True, seed=1)
    spec = stage_spec(again, torch_reference(again), "unet/unet.onnx", "fp32")
    assert spec.inputs == manifest.stages["unet"].inputs
    assert compare_with_torch(bundle / "unet" / "unet.onnx", spec, torch_reference(again)).relative_l2 < 2e-5
    animate = ImageToVideo.from_bundle(bundle)
    fast = {"num_inference_steps": 1, "seed": 0}
    assert animate(PHOTO, "a cat", **fast).frames.shape == (1, 16, 64, 64, 3)
    videos = animate(PHOTO, ["a", "b"], height=48, width=96, guidance_scale_img=2.0, **fast)
    assert videos.frames.shape == (2, 16, 48, 96, 3)
    with pytest.raises(UserError, match="multiples of 16"):
        animate(PHOTO, "a cat", height=56, width=64, **fast)


def test_the_decoder_gives_a_frame_the_same_numbers_alone_and_among_four(dynamic_bundle, tiny_bundle):
    """Its frames are open in a bundle of fixed size too."""
    for bundle in (dynamic_bundle, tiny_bundle):
        opened = Bundle.open(bundle)
        spec, sides = opened.manifest.stages["vae_decoder"], {"latent_height": 8, "latent_width": 8}
        assert [tensor.shape[0] for tensor in (*spec.inputs, *spec.outputs)] == ["frames", "frames"]
        dims = sides | {"height": 64, "width": 64}
        one, four = (OnnxCpuSession(opened.graph(spec), spec, dims | {"frames": frames}) for frames in (1, 4))
        latents = np.random.default_rng(0).standard_normal(four.inputs["latents"].shape).astype(np.float32)
        four.inputs["latents"][...] = latents
        four.run()
        for frame in range(4):
            one.inputs["latents"][...] = latents[frame]
            one.run()
            assert np.array_equal(one.outputs["image"][0], four.outputs["image"][frame])
        assert [case["frames"] for case in Cases(opened).sizes(spec)] == [1, 4]


@pytest.mark.slow
def test_fp16_variant_of_a_dynamic_bundle(dynamic_bundle, tmp_path):
    """Every guidance batch is compared with float32; the graph stays open in batch and size."""
    bundle = Path(shutil.copytree(dynamic_bundle, tmp_path / "bundle"))
    spec = write_variant(bundle, "fp16", ["unet"])["unet"]
    assert [t.shape for t in spec.inputs] == [t.shape for t in Bundle.open(bundle).manifest.stages["unet"].inputs]
    entry = json.loads((bundle / "variants" / "fp16" / "losses.json").read_text())["stages"]["unet"]
    assert sorted((loss["rows"], loss["seed"]) for loss in entry["losses"]) == [
        (r, s) for r in (1, 2, 3) for s in range(3)
    ]
    assert all(loss["relative_l2"] < 5e-3 for loss in entry["losses"])
    assert entry["graph"]["scales_at_operands"] == 0
    session = OnnxCpuSession(bundle / spec.file, spec, {"rows": 3, "latent_height": 6, "latent_width": 4})
    session.inputs["sample"][...] = np.random.default_rng(0).standard_normal(session.inputs["sample"].shape)
    session.run()
    noise = session.outputs["noise_pred"]
    assert noise.dtype == np.float32 and np.isfinite(noise).all() and noise.std() > 0


def test_dynamic_sizes_are_multiples_of_the_coarsest_level():
    sizes = dynamic_sizes(8, 8)
    parts = {f"latent_{axis}/{divisor}" for axis in ("height", "width") for divisor in (2, 4, 8)}
    assert set(sizes) == {"rows", "frames", "latent_height", "latent_width", "height", "width"} | parts
