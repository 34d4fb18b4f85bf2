"""Configurations that cannot be of a real model: refused from their text alone, without torch, in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt import UserError, cli
from consisti2v_rt.export.checkpoint import open_checkpoint
from consisti2v_rt.export.part_configs import TextEncoderConfig, VaeConfig
from consisti2v_rt.export.request import settle_size
from consisti2v_rt.export.unet import UNetConfig
from consisti2v_rt.kernels.ddim import SchedulerConfig

DEMO = Path(cli.__file__).parent / "models" / "demo"
NAN, INFINITY = float("nan"), float("inf")

UNETS: list[tuple[dict[str, Any], str]] = [
    ({"layers_per_block": 10**9}, "layers_per_block"),
    ({"layers_per_block": 10**400}, "does not fit"),
    ({"block_out_channels": [64] * 100_000}, "100000 entries"),
    ({"down_block_types": ["DownBlock2D"] * 50_000}, "50000 entries"),
    ({"attention_head_dim": 1, "block_out_channels": [64] * 100_000}, "100000 entries"),
    ({"block_out_channels": [32 * 10**6, 32 * 10**6]}, "block_out_channels"),
    ({"block_out_channels": [16384, 16384]}, "billion weights"),
    ({"n_frames": 10**9}, "n_frames"),
    ({"cross_attention_dim": 2**40}, "cross_attention_dim"),
    ({"in_channels": 10**9}, "in_channels"),
    ({"n_temp_heads": 10**9}, "n_temp_heads"),
    ({"norm_eps": 0}, "norm_eps"),
    ({"norm_eps": NAN}, "NaN is no number"),
    ({"norm_eps": -1e-5}, "norm_eps"),
    ({"norm_eps": INFINITY}, "Infinity is no number"),
    ({"norm_num_groups": 7}, "norm_num_groups"),
    ({"freq_shift": 32}, "freq_shift"),
    ({"freq_shift": 10**400}, "does not fit"),
    ({"sample_size": 10**9}, "sample_size"),
    ({"sample_size": [16, -1]}, "sample_size"),
    ({"sample_size": True}, "sample_size"),
    ({"in_channels": 8}, "latent_channels=4"),
    ({"cross_attention_dim": 64}, "hidden_size=32"),
    ({"colour": "x" * 10**6}, "colour"),
]
VAES: list[tuple[dict[str, Any], str]] = [
    ({"scaling_factor": 0}, "scaling_factor"),
    ({"scaling_factor": -0.18}, "scaling_factor"),
    ({"scaling_factor": NAN}, "NaN is no number"),
    ({"scaling_factor": INFINITY}, "Infinity is no number"),
    ({"scaling_factor": 10**400}, "does not fit"),
    ({"scaling_factor": "1"}, "scaling_factor"),
    ({"layers_per_block": 10**9}, "layers_per_block"),
    ({"block_out_channels": [64] * 100_000}, "block_out_channels"),
    ({"block_out_channels": [2**30] * 3}, "block_out_channels"),
    ({"norm_num_groups": 5}, "not a multiple of norm_num_groups=5"),
    ({"norm_num_groups": 0}, "norm_num_groups"),
    ({"latent_channels": 10**9}, "latent_channels"),
    ({"in_channels": 4}, "in_channels"),
    ({"down_block_types": ["DownEncoderBlock2D"]}, "down_block_types"),
    ({"up_block_types": ["Evil"] * 3}, "up_block_types"),
    ({"shift_factor": 0.1}, "shift_factor"),
    ({"block_out_channels": [4096] * 3, "norm_num_groups": 32}, "weight files have"),
]
TEXTS: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"vocab_size": 10**12}, "vocab_size"),
    ({"hidden_size": 10**9}, "hidden_size"),
    ({"intermediate_size": 10**12}, "intermediate_size"),
    ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
    ({"max_position_embeddings": 1}, "max_position_embeddings"),
    ({"num_attention_heads": 5}, "num_attention_heads=5"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"layer_norm_eps": 0}, "layer_norm_eps"),
    ({"layer_norm_eps": NAN}, "NaN is no number"),
    ({"model_type": "t5"}, "model_type"),
    ({"intermediate_size": 100_000}, "weight files have"),
]
CASES = [
    *(("unet", *case) for case in UNETS),
    *(("vae", *case) for case in VAES),
    *(("text_encoder", *case) for case in TEXTS),
]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


def change(checkpoint: Path, part: str, values: dict[str, Any]) -> None:
    path = checkpoint / part / "config.json"
    # Python's own limit on digits would stand before the program's.
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.slow
@pytest.mark.parametrize(("part", "values", "says"), CASES, ids=[f"{part}-{v.keys()}" for part, v, _ in CASES])
def test_refused_from_the_configuration(checkpoint: Path, part: str, values: dict[str, Any], says: str) -> None:
    change(checkpoint, part, values)
    started = time.monotonic()
    with pytest.raises(UserError) as refusal:
        open_checkpoint(checkpoint)
    sentence = str(refusal.value)
    assert says in sentence and len(sentence) < 400 and sentence.endswith(".")
    assert time.monotonic() - started < 2


@pytest.mark.slow
def test_the_command_refuses_without_torch(checkpoint: Path) -> None:
    """Every argument too; the child cannot import torch or what needs it."""
    change(checkpoint, "unet", {"layers_per_block": 10**9})
    good, out = str(DEMO), str(checkpoint.parent / "bundle")
    (checkpoint.parent / "options.json").write_text('{"norm_eps": 0}')
    runs = {
        "layers_per_block": [str(checkpoint)],
        "norm_eps": ["--random-weights", str(checkpoint.parent / "options.json")],
        "height 63": [good, "--height", "63"],
        "width 6": [good, "--width", "6", "--dynamic"],
        "clips of 16": [good, "--frames", "8"],
        "cache branch 9": [good, "--cache-branch", "9"],
        "guidance 'x'": [good, "--guidance", "x"],
        "text attention 'x'": [good, "--text-attention", "x"],
        "does not exist": [good, "--unet-checkpoint", "none.safetensors"],
        "not a file of weights": [good, "--unet-checkpoint", str(DEMO / "README.md")],
        "seed": [good, "--seed", str(2**64)],
        "make it first": [good, "-o", str(checkpoint / "no" / "bundle")],
    }
    code = (
        "import json, sys\n"
        "for name in ('torch', 'diffusers', 'transformers', 'onnx', 'onnxscript'): sys.modules[name] = None\n"
        "from consisti2v_rt import cli\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['consisti2v', 'export', *arguments]\n"
        "    try: cli.main()\n"
        "    except SystemExit as end: assert end.code == 2, end.code\n"
    )
    arguments = [[*run, *([] if "-o" in run else ["-o", out])] for run in runs.values()]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments)], capture_output=True, text=True, timeout=120
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and len(lines) == len(runs), done.stderr
    for says, line in zip(runs, lines, strict=True):
        assert line.startswith("error: ") and says in line, line
    assert not Path(out).exists()


@pytest.mark.parametrize("dtype", ["C64", "C128"])
def test_complex_weights_are_refused_from_the_header(checkpoint: Path, dtype: str) -> None:
    path = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    data = path.read_bytes().replace(b'"F16"', f'"{dtype}"'.encode() if len(dtype) == 3 else b'"C64"', 1)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"has dtype C64; weights are real numbers"):
        open_checkpoint(checkpoint)


def test_complex_weights_of_a_torch_file_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from consisti2v_rt.export.loading import read_weights

    torch.save({"conv_in.weight": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=r"dtype torch\.complex64; weights are real"):
        read_weights(tmp_path / "weights.pt")


@pytest.mark.parametrize("length", [0, 2**62, 10])
def test_a_damaged_header_is_refused(checkpoint: Path, length: int) -> None:
    path = checkpoint / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(UserError, match="header is damaged"):
        open_checkpoint(checkpoint)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFO")
@pytest.mark.parametrize("name", ["unet/config.json", "tokenizer/vocab.json", "vae/config.json"])
def test_a_fifo_is_not_waited_for(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink(missing_ok=True)
    os.mkfifo(checkpoint / name)
    with pytest.raises(UserError, match="regular file"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]", "\ud800".encode("utf-8", "surrogatepass"), b"\xff\xfe"])
def test_a_configuration_that_is_no_object(checkpoint: Path, text: str | bytes) -> None:
    (checkpoint / "vae" / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"not valid JSON|does not hold a JSON object"):
        open_checkpoint(checkpoint)


def test_a_tokenizer_with_code_of_its_own(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    with pytest.raises(UserError, match="auto_map"):
        open_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "values",
    [
        {"num_train_timesteps": 10**12},
        {"num_train_timesteps": 1},
        {"beta_start": NAN},
        {"beta_end": INFINITY},
        {"beta_end": -1},
        {"steps_offset": 10**12},
    ],
    ids=str,
)
def test_a_schedule_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SchedulerConfig.from_dict(values)


def test_estimates_are_near_the_real_networks() -> None:
    torch = pytest.importorskip("torch")
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    from consisti2v_rt.export.unet import VideoUNet

    def near(module: Any, estimate: int) -> bool:
        return abs(sum(p.numel() for p in module.parameters()) / estimate - 1) < 0.05

    unet, vae, text = (
        json.loads((DEMO / part / "config.json").read_text()) for part in ("unet", "vae", "text_encoder")
    )
    with torch.device("meta"):
        for options in (unet, {}, unet | {"use_temporal": False, "layers_per_block": 3}):
            config = UNetConfig.from_dict(options)
            network = VideoUNet(config)
            assert near(network, config.parameters) and network.skip_count == config.skip_count
        assert near(AutoencoderKL.from_config(vae), VaeConfig.from_dict(vae).parameters)
        assert near(CLIPTextModel(CLIPTextConfig(**text)), TextEncoderConfig.from_dict(text).parameters)


@pytest.mark.parametrize(
    ("sample_size", "asked", "settled"),
    [
        (16, (None, None), (64, 64)),
        ([16, 12], (None, None), (64, 48)),
        (16, (None, 72), (64, 72)),
        (None, (None, None), (256, 256)),
    ],
    ids=str,
)
def test_the_default_size_is_the_models_own(sample_size: Any, asked: Any, settled: tuple[int, int]) -> None:
    config = UNetConfig.from_dict({"sample_size": sample_size})
    assert settle_size(config, 4, *asked, dynamic=False) == settled


def test_a_default_that_does_not_fit_is_named_as_such() -> None:
    with pytest.raises(UserError, match=r"height 36, the checkpoint's own sample size, does not fit: .* of 32 pixels"):
        settle_size(UNetConfig.from_dict({"sample_size": 9}), 4, None, None, dynamic=True)
