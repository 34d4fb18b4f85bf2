"""LoRA: layouts of the files, merging at the export and in a bundle, and going over to other weights."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
save_file = pytest.importorskip("safetensors.torch").save_file

from consisti2v_rt import ImageToVideo, UserError  # noqa: E402
from consisti2v_rt.export.loading import build_unet, merge_loras  # noqa: E402
from consisti2v_rt.export.lora.files import LoraRequest, read_lora_file  # noqa: E402
from consisti2v_rt.export.lora.merge import merge_into_bundle  # noqa: E402
from consisti2v_rt.export.random_model import open_gates, random_model  # noqa: E402
from consisti2v_rt.export.random_options import random_unet_config  # noqa: E402
from consisti2v_rt.export.stages import stages  # noqa: E402
from consisti2v_rt.export.unet import VideoUNet  # noqa: E402
from consisti2v_rt.export.weight_map import read_weight_map  # noqa: E402
from consisti2v_rt.runtime.bundle.bundle import Bundle, hash_files  # noqa: E402
from consisti2v_rt.runtime.bundle.manifest import EngineSpec, graph_sha256  # noqa: E402
from consisti2v_rt.runtime.session import OnnxCpuSession  # noqa: E402

PHOTO = Path(__file__).parents[1] / "assets" / "example.jpg"
RANK = 2


def raw_unet() -> VideoUNet:
    """The U-Net of ``random_model("tiny")`` before its gates are folded."""
    torch.manual_seed(0)
    unet = VideoUNet(random_unet_config("tiny"))
    open_gates(unet)
    return unet.requires_grad_(False)


def pairs(weights, seed: int, alpha: float | None = None):
    """Random halves for each layer's weight."""
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: (
            torch.randn(weight.shape[0], RANK, *[1] * (weight.ndim - 2), generator=generator) * 0.1,
            torch.randn(RANK, *weight.shape[1:], generator=generator) * 0.1,
            alpha,
        )
        for layer, weight in weights.items()
    }


def in_layout(layout: str, made) -> dict:
    """Halves under the keys that a trainer of this layout writes."""
    tensors = {}
    for layer, (up, down, alpha) in made.items():
        part, _, path = layer.partition(".")
        if layout == "kohya":
            text = "text_model_" if part == "text_encoder" else ""
            stem = f"lora_{'te' if text else 'unet'}_{text}{path.replace('.', '_')}"
            names = f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"
        elif layout == "processor" and path.endswith("attn1.to_q"):
            stem = f"{layer.removesuffix('to_q')}processor.to_q_lora"
            names = f"{stem}.down.weight", f"{stem}.up.weight"
        else:
            stem = layer.replace("text_encoder.", "text_encoder.text_model.")
            names = f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
        tensors |= dict(zip(names, (down, up), strict=True))
        if alpha is not None:
            tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def delta(up, down, alpha, scale: float):
    factor = scale * (1 if alpha is None else alpha / RANK)
    product = up.double().flatten(1) @ down.double().flatten(1)
    return factor * product.reshape(up.shape[0], *down.shape[1:])


def layer_weights(unet, text_encoder) -> dict:
    """Every weight of a linear or convolution layer."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d)
    return {
        f"{part}.{path.removeprefix('text_model.')}": module.weight
        for part, root in (("unet", unet), ("text_encoder", text_encoder))
        for path, module in root.named_modules()
        if isinstance(module, kinds) and not (part == "unet" and "conv3ds" in path and "time_emb_proj" in path)
    }


@pytest.fixture(scope="module")
def twin():
    """The torch model of the tiny bundle, its U-Net's gates not folded yet."""
    model = random_model("tiny")
    model.unet = raw_unet()
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory, twin) -> dict[str, tuple[Path, dict]]:
    """Two LoRAs: every layer of both models, and the spatial queries alone."""
    folder, weights = tmp_path_factory.mktemp("loras"), layer_weights(twin.unet, twin.text_encoder)
    few = {layer: weight for layer, weight in weights.items() if layer.endswith("attn1.to_q")}
    made = {"every": pairs(weights, 1, alpha=1.0), "few": pairs(few, 2)}
    for name, layout in (("every", "kohya"), ("few", "processor")):
        save_file(in_layout(layout, made[name]), folder / f"{name}.safetensors")
    return {name: (folder / f"{name}.safetensors", halves) for name, halves in made.items()}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["peft", "processor", "kohya"])
def test_every_layout_is_the_torch_merge(layout, twin, tmp_path, relative_l2):
    weights = layer_weights(twin.unet, twin.text_encoder)
    made = pairs(weights, 3, alpha=0.5 if layout == "kohya" else None)
    torch.save(in_layout(layout, made), tmp_path / "lora.pt")
    save_file(in_layout(layout, made), tmp_path / "lora.safetensors")
    state = {key: value.clone() for key, value in twin.unet.state_dict().items()}
    expected = {key: value.clone() for key, value in state.items()}
    for layer, halves in made.items():
        if layer.startswith("unet."):
            key = f"{layer.removeprefix('unet.')}.weight"
            expected[key] = (expected[key].double() + delta(*halves, 0.7)).float()
    text = random_model("tiny").text_encoder
    before = layer_weights(torch.nn.Module(), text)
    before = {layer: weight.double().clone() for layer, weight in before.items()}
    from_torch = dict(state)
    merge_loras([LoraRequest(tmp_path / "lora.safetensors", 0.7)], state, text)
    merge_loras([LoraRequest(tmp_path / "lora.pt", 0.7)], from_torch, random_model("tiny").text_encoder)
    for key, value in expected.items():
        assert torch.equal(state[key], from_torch[key]) and torch.allclose(state[key], value, 1e-6, 1e-8), key
    for layer, weight in layer_weights(torch.nn.Module(), text).items():
        assert relative_l2(weight, before[layer] + delta(*made[layer], 0.7)) <= 1e-7, layer
    config = random_unet_config("tiny")
    inputs = torch.randn(1, config.in_channels, config.n_frames - 1, 8, 8), 501, torch.randn(1, 77, 16)
    first = torch.randn(1, config.in_channels, 1, 8, 8)
    ours, theirs = (build_unet(config, one)(*inputs, first, 3) for one in (state, expected))
    assert relative_l2(ours, theirs) <= 1e-6


@pytest.fixture(scope="module")
def merged(tiny_bundle, files, tmp_path_factory) -> Path:
    """The tiny bundle with every layer changed."""
    output = tmp_path_factory.mktemp("merged") / "every"
    return merge_into_bundle(tiny_bundle, [LoraRequest(files["every"][0], 0.5)], output)


@pytest.mark.slow
def test_every_weight_of_a_bundle_is_found_and_changed_as_in_torch(tiny_bundle, merged, files, twin, relative_l2):
    mapped = read_weight_map(Bundle.open(tiny_bundle))
    stored = {layer for layer, weight in mapped.items() if weight.places}
    assert stored >= files["every"][1].keys()
    model = random_model("tiny")
    model.unet = raw_unet()
    for layer, weight in layer_weights(model.unet, model.text_encoder).items():
        with torch.no_grad():
            weight.copy_(weight.double() + delta(*files["every"][1][layer], 0.5))
    model.unet.prepare_for_inference()
    bundle = Bundle.open(merged)
    for stage in stages(model, 64, 48, 2, False):
        if stage.name.startswith("vae"):
            continue
        with torch.no_grad():
            result = stage.module.eval()(*stage.arrange(list(stage.inputs.values())))
        expected = [result] if isinstance(result, torch.Tensor) else list(result)
        spec = bundle.manifest.stages[stage.name]
        session = OnnxCpuSession(merged / spec.file, spec, {})
        for name, tensor in stage.inputs.items():
            session.inputs[name][...] = tensor.numpy()
        session.run()
        for name, tensor in zip(stage.outputs, expected, strict=True):
            assert relative_l2(session.outputs[name], tensor) <= 2e-5, (stage.name, name)


def content(bundle: Path) -> dict[str, str]:
    return {
        name: record["sha256"] for name, record in json.loads((bundle / "bundle.json").read_text())["files"].items()
    }


def test_a_bundle_with_loras_is_made_from_its_base_again(consisti2v, tiny_bundle, merged, files, tmp_path):
    few, every = f"{files['few'][0]}:0.3", f"{files['every'][0]}:0.5"
    second, third = tmp_path / "second", tmp_path / "third"
    assert "--base" in consisti2v("lora", merged, few, "-o", second).refusal() and not second.exists()
    assert consisti2v("lora", merged, few, "-o", second, "--base", tiny_bundle).code == 0
    assert content(second) != content(merged)
    merge_into_bundle(second, [LoraRequest.parse(every)], third, base=tiny_bundle)
    assert content(third) == content(merged)
    lora = Bundle.open(third).manifest.lora
    assert lora is not None and [(file.name, file.scale) for file in lora.files] == [("every.safetensors", 0.5)]


def test_half_precision_graphs_follow_and_engines_with_weights_do_not(tiny_bundle, files, tmp_path):
    pytest.importorskip("onnx_ir")
    from consisti2v_rt.export.precision.conversion import convert, variant_spec
    from consisti2v_rt.export.precision.recipe import VariantOptions, variant_rules

    base, rules = (
        Path(shutil.copytree(tiny_bundle, tmp_path / "base")),
        variant_rules("fp16", ["unet"], VariantOptions()),
    )
    opened = Bundle.open(base)
    spec, file = opened.manifest.stages["unet"], "variants/fp16/unet/unet.onnx"
    _, types = convert(opened.graph(spec), base / file, rules, {})
    variant = variant_spec(spec, file, "fp16", types)
    (base / "engines").mkdir()
    engines = []
    for name, stage, precision, stripped in (
        ("stripped", "unet", "fp16", True),
        ("whole", "text_encoder", "fp32", False),
    ):
        (base / f"engines/{name}.plan").write_bytes(name.encode())
        engines.append(
            EngineSpec(
                stage,
                f"engines/{name}.plan",
                "rtx4060",
                "tensorrt-rtx",
                "1.7",
                precision,
                ("8.9",),
                "0" * 64,
                stripped=stripped,
            )
        )
    names = [path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()]
    records = hash_files(base, [name for name in names if name != "bundle.json"])
    manifest = replace(opened.manifest, files=records, variants={"fp16": {"unet": variant}})
    fitting = [
        replace(engine, onnx_sha256=graph_sha256(manifest, graph, weights=not engine.stripped))
        for engine, graph in zip(engines, (variant, manifest.stages["text_encoder"]), strict=True)
    ]
    (base / "bundle.json").write_text(replace(manifest, engines=tuple(fitting)).to_json())
    notes: list[str] = []
    merged = merge_into_bundle(base, [LoraRequest(files["every"][0])], tmp_path / "merged", on_notice=notes.append)
    after = Bundle.open(merged)
    assert [engine.file for engine in after.manifest.engines] == ["engines/stripped.plan"]
    assert len(notes) == 1 and "text_encoder for rtx4060" in notes[0] and "consisti2v build" in notes[0]
    convert(after.graph(after.manifest.stages["unet"]), tmp_path / "again" / "unet.onnx", rules, {})
    for ending in ("onnx", "onnx.data"):
        assert (merged / f"variants/fp16/unet/unet.{ending}").read_bytes() == (
            tmp_path / f"again/unet.{ending}"
        ).read_bytes()


def test_what_does_not_fit_is_named(tiny_bundle, demo_bundle, files, tmp_path):
    unknown, halved, infinite = (tmp_path / f"{name}.safetensors" for name in ("unknown", "halved", "infinite"))
    good = in_layout("peft", files["few"][1])
    save_file(good | {"unet.no_such_layer.lora_A.weight": torch.zeros(2, 2)}, unknown)
    save_file(dict(list(good.items())[:1]), halved)
    save_file({name: tensor + float("inf") for name, tensor in good.items()}, infinite)
    cases = (
        (tiny_bundle, unknown, "no_such_layer"),
        (tiny_bundle, halved, "half of the pair"),
        (tiny_bundle, infinite, "not finite"),
        (tiny_bundle, tmp_path / "lora.pt", "export MODEL --lora"),
        (demo_bundle, files["few"][0], "export MODEL -o BUNDLE"),
    )
    for bundle, file, told in cases:
        with pytest.raises(UserError, match=told):
            merge_into_bundle(bundle, [LoraRequest(file)], tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_half_precisions_are_read_as_float32(tmp_path):
    values = torch.tensor([[1.0, -0.333251953125], [6.5e-5, 3.0]])
    path = tmp_path / "half.safetensors"
    save_file({"a": values.half(), "b": values.bfloat16(), "c": values.double()}, path)
    tensors = read_lora_file(path).tensors
    for name, dtype in (("a", torch.float16), ("b", torch.bfloat16), ("c", torch.float64)):
        assert np.array_equal(tensors[name], values.to(dtype).float().numpy())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="outside the file"):
        read_lora_file(path)


@pytest.mark.slow
def test_a_running_call_finishes_on_the_old_weights(tiny_bundle, merged):
    settings = {"num_inference_steps": 2, "seed": 1, "device": "cpu"}
    device = {"device": settings.pop("device")}

    def run(animate, **more):
        return animate(PHOTO, "a cat", **settings, **more).frames

    with ImageToVideo.from_bundle(merged, **device) as fresh:
        new = run(fresh)
    with ImageToVideo.from_bundle(tiny_bundle, **device) as animate:
        old = run(animate)
        assert not np.array_equal(old, new)
        threads = []

        def swap(step):
            if not threads:
                threads.append(threading.Thread(target=animate.load_weights, args=(merged,)))
                threads[0].start()
                threads[0].join(0.5)

        assert np.array_equal(run(animate, callback=swap), old)
        threads[0].join()
        assert np.array_equal(run(animate), new)
        with pytest.raises(UserError, match="another model or size"):
            animate.load_weights("demo")
        assert np.array_equal(run(animate), new)
