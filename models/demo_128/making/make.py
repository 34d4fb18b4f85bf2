"""From packages to the checkpoint and its card."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from ....export.checkpoint import RECOMMENDED_FILE
from ....export.unet import VideoUNet
from ....export.vocabulary import clip_tokenizer
from .data import clips, load_photos, pictures
from .media import PHOTOS, fetch
from .moves import MOVES
from .prompts import DEMO_RECOMMENDED
from .text import build_text_encoder, train_text_encoder
from .unet import CONFIG, build_unet
from .vae import build_vae

_PICTURES, _BATCHES = 64, 24


def make(work: Path, output: Path, progress: Callable[[str], None]) -> None:
    """Fetch, fit, and write the checkpoint; a part that a killed run has finished (under `work`) is not made again."""
    fetch(work)
    photos = load_photos(work, held_out=False)
    progress("photos are there")
    vae = build_vae(pictures(photos, _PICTURES))
    progress("autoencoder is set")
    text_encoder = build_text_encoder()
    kept(text_encoder, work / "text_encoder.safetensors", lambda: train_text_encoder()[0])
    progress("text encoder has learnt")
    unet = VideoUNet.from_config(CONFIG)
    kept(unet, work / "unet.safetensors", lambda: build_unet([clips(photos, n) for n in range(_BATCHES)]))
    progress("U-Net is set")
    write_checkpoint(output, unet, vae, text_encoder)


def kept(module: nn.Module, path: Path, made: Callable[[], nn.Module]) -> None:
    """Load a module's weights from a file, which is made first where there is none."""
    if not path.is_file():
        partial = path.with_suffix(".partial")
        save_file({name: value.contiguous() for name, value in made().state_dict().items()}, partial)
        partial.rename(path)
    module.load_state_dict(load_file(path))


def write_checkpoint(output: Path, unet: VideoUNet, vae: Any, text_encoder: Any) -> None:
    """Write ``unet/ vae/ text_encoder/ tokenizer/``, float16 safetensors, ``recommended.json`` and the card."""
    output.mkdir(parents=True, exist_ok=True)
    for part in ("unet", "vae", "text_encoder", "tokenizer"):
        shutil.rmtree(output / part, ignore_errors=True)
    (output / "unet").mkdir()
    config = json.dumps({"_class_name": "VideoUNet", **unet.config.to_dict()}, indent=2)
    (output / "unet" / "config.json").write_text(config + "\n", encoding="utf-8")
    half = {name: value.half().contiguous() for name, value in unet.state_dict().items()}
    save_file(half, output / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    vae.half().save_pretrained(output / "vae")
    text_encoder.half().save_pretrained(output / "text_encoder")
    clip_tokenizer().save_pretrained(output / "tokenizer")
    table = output / "tokenizer" / "tokenizer.json"
    compact = json.dumps(json.loads(table.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":"))
    table.write_text(compact, encoding="utf-8")
    values = {name: value for name, value in dataclasses.asdict(DEMO_RECOMMENDED).items() if value is not None}
    (output / RECOMMENDED_FILE).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    for file in output.rglob("*.safetensors"):
        file.chmod(0o644)
    # Figures that lie there are those of other weights.
    (output / "evaluation.json").unlink(missing_ok=True)
    write_card(output)


_CARD = Path(__file__).parent / "card.md"


def write_card(folder: Path) -> None:
    """Write ``README.md`` from ``card.md`` and, where there is one, ``evaluation.json`` in `folder`."""
    file = folder / "evaluation.json"
    figures = _table(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else "Not measured yet."
    credits = "\n".join(
        f"| {m.name} | {'measured' if m.held_out == 'yes' else 'fitted'} | {m.package} | {m.author} | {m.licence} |"
        for m in PHOTOS
    )
    megabytes = sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / 1e6
    text = _CARD.read_text(encoding="utf-8").format(
        moves=", ".join(move.replace("_", " ") for move in MOVES), megabytes=megabytes, figures=figures, credits=credits
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def _table(figures: dict[str, Any]) -> str:
    rows = {
        **figures["strides"],
        **{name: row for name, row in figures["moves"].items() if "stride 3" in name or name == "no text"},
    }
    names = ["psnr 0", "psnr 1", "psnr 8", "psnr 15", "ssim 8", "ssim 15", "grid", "agrees", "amount"]
    lines = [
        f"| {len(figures['photos'])} photos, {figures['steps']} steps | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for name, row in rows.items():
        cells = [f"{row[key]:.{1 if 'psnr' in key else 2}f}" if key in row else "" for key in names]
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(
        [*lines, "", f"Round trip of the photos as they are: {figures['round trip of the photos']:.1f} dB."]
    )
