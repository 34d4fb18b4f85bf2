"""LoRA on the golden configs: ``export --lora`` and ``consisti2v lora`` against the published U-Net merged in torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file  # noqa: E402

from consisti2v_rt.benchmarks.published import PublishedUNet  # noqa: E402
from consisti2v_rt.export.loading import build_unet, merge_loras  # noqa: E402
from consisti2v_rt.export.lora.files import LoraRequest  # noqa: E402
from consisti2v_rt.export.random_model import random_model  # noqa: E402
from consisti2v_rt.export.unet.state_dict import is_dead  # noqa: E402
from consisti2v_rt.export.weight_map import read_weight_map  # noqa: E402
from consisti2v_rt.runtime.bundle.bundle import Bundle  # noqa: E402
from consisti2v_rt.runtime.session import OnnxCpuSession  # noqa: E402

pytestmark = pytest.mark.rare
SCALES = {"every": 0.7, "spatial": -0.4}
RANK, ALPHA = 3, 1.5


@pytest.fixture(scope="module", params=["A", "D"])
def merged(request, golden, tmp_path_factory) -> Any:
    """A golden config as a checkpoint, two LoRAs for it, and the weights that torch merges them to."""
    folder = tmp_path_factory.mktemp(f"golden-{request.param}")
    source = golden / request.param
    (folder / "unet").mkdir()
    shutil.copyfile(source / "config.json", folder / "unet" / "config.json")
    shutil.copyfile(source / "weights.safetensors", folder / "unet" / "diffusion_pytorch_model.safetensors")
    model = random_model(str(source / "config.json"))
    for part in ("vae", "text_encoder", "tokenizer"):
        getattr(model, part).save_pretrained(folder / part)
    state = load_file(source / "weights.safetensors")
    unet = PublishedUNet(json.loads((source / "config.json").read_text()))
    layers = {
        name: module.weight
        for name, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d | torch.nn.Conv3d) and not is_dead(f"{name}.weight")
    }
    generator = torch.Generator().manual_seed(1)
    total = {name: state[f"{name}.weight"].double() for name in layers}
    for file, scale in SCALES.items():
        tensors = {}
        for name, weight in layers.items():
            if file == "spatial" and ".attn1.to_" not in name:
                continue
            up = torch.randn(weight.shape[0], RANK, *[1] * (weight.ndim - 2), generator=generator) * 0.1
            down = torch.randn(RANK, *weight.shape[1:], generator=generator) * 0.1
            stem = f"lora_unet_{name.replace('.', '_')}"
            tensors |= {f"{stem}.lora_up.weight": up, f"{stem}.lora_down.weight": down}
            tensors[f"{stem}.alpha"] = torch.tensor(ALPHA)
            product = (up.double().flatten(1) @ down.double().flatten(1)).reshape(weight.shape)
            total[name] = total[name] + scale * ALPHA / RANK * product
        save_file(tensors, folder / f"{file}.safetensors")
    state |= {f"{name}.weight": weight.float() for name, weight in total.items()}
    unet.load_state_dict(state)
    return folder, unet.eval().requires_grad_(False), state, load_file(source / "io.safetensors")


def requests(folder: Path) -> list[LoraRequest]:
    return [LoraRequest(folder / f"{file}.safetensors", scale) for file, scale in SCALES.items()]


def test_the_merge_is_torch_s_to_the_last_bit_and_every_golden_case_follows(merged, golden, relative_l2):
    folder, published, expected, io = merged
    state = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    before = {key: value.clone() for key, value in state.items()}
    merge_loras(requests(folder), state, torch.nn.Module())
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    unet = build_unet(json.loads((folder / "unet" / "config.json").read_text()), state)
    unchanged = build_unet(json.loads((folder / "unet" / "config.json").read_text()), before)
    for case in sorted({key.partition(".")[0] for key in io}):
        given = {key.partition(".")[2]: value for key, value in io.items() if key.startswith(f"{case}.")}
        output = given.pop("output")
        theirs = published(**given)
        with torch.no_grad():
            assert relative_l2(unet(**given), theirs) < 5e-6, case
            assert relative_l2(unchanged(**given), output) < 5e-6, case
        assert relative_l2(theirs, output) > 0.05, case


def test_both_commands_make_the_bundle_of_a_torch_merge(merged, consisti2v, tmp_path, relative_l2):
    folder, published, _, _ = merged
    texts = [f"{folder / file}.safetensors:{scale}" for file, scale in SCALES.items()]
    size = ("--height", 64, "--width", 48, "--guidance", "text")
    given = [word for text in texts for word in ("--lora", text)]
    for command in (
        ("export", folder, "-o", tmp_path / "exported", *size, *given),
        ("export", folder, "-o", tmp_path / "base", *size),
        ("lora", tmp_path / "base", *texts, "-o", tmp_path / "merged"),
    ):
        outcome = consisti2v(*command)
        assert outcome.code == 0, outcome.stderr
    bundles = {name: Bundle.open(tmp_path / name) for name in ("exported", "merged")}
    generator = torch.Generator().manual_seed(2)
    model = bundles["merged"].manifest.model
    frames, height, width = model.frames, model.height // 8, model.width // 8
    inputs = {
        "sample": torch.randn(2, 4, frames - 1, height, width, generator=generator),
        "timestep": torch.tensor([501]),
        "first_frame_latents": torch.randn(2, 4, 1, height, width, generator=generator),
        "frame_stride": torch.tensor([3]),
    }
    text = torch.randn(2, 77, published.config.cross_attention_dim, generator=generator)
    expected = published(encoder_hidden_states=text, **inputs)
    for bundle in bundles.values():
        keys = [run(bundle, "conditioning", text_embeddings=row[None]) for row in text]
        given = {name: np.concatenate([row[name] for row in keys]) for name in keys[0]}
        result = run(bundle, "unet", **given, **{name: tensor.numpy() for name, tensor in inputs.items()})
        assert relative_l2(result["noise_pred"], expected) < 5e-6, bundle.path.name
    assert_equal_weights(*bundles.values())


def run(bundle: Bundle, stage: str, **inputs: Any) -> dict[str, Any]:
    spec = bundle.manifest.stages[stage]
    session = OnnxCpuSession(bundle.path / spec.file, spec, {})
    for name, value in inputs.items():
        session.inputs[name][...] = value
    session.run()
    return {name: np.array(value) for name, value in session.outputs.items()}


def assert_equal_weights(exported: Bundle, merged: Bundle) -> None:
    """Bit for bit, but where a gate or a sum of kernels was folded into a weight: there to float32 rounding."""
    folded = {
        (place.stage, place.initializer)
        for weight in read_weight_map(merged).values()
        for place in weight.places
        if weight.gate != 1 or place.form.startswith("phase")
    }
    compared = 0
    for stage in ("unet", "conditioning"):
        graphs = [bundle.graph(bundle.manifest.stages[stage]) for bundle in (exported, merged)]
        contents = [graph.weights() for graph in graphs]
        tensors = [{tensor.name: tensor for tensor in graph.metadata.external} for graph in graphs]
        assert tensors[0].keys() == tensors[1].keys()
        for name in tensors[0]:
            ours, theirs = (
                content[one[name].location][one[name].offset : one[name].offset + one[name].nbytes]
                for content, one in zip(contents, tensors, strict=True)
            )
            compared += 1
            if (stage, name) in folded:
                ours, theirs = ours.view(np.float32), theirs.view(np.float32)
                assert np.abs(ours - theirs).max() <= 4e-7 * np.abs(theirs).max(), name
            else:
                assert np.array_equal(ours, theirs), (stage, name)
    assert compared > 100
