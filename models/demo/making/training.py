"""The steps of making the demo model, in order: fetch, train the autoencoder, encode, train the U-Net, export."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import AutoencoderKL

from ....runtime.media.video_file import save_frames
from ....runtime.pipeline import ImageToVideo
from .checkpoint import load_checkpoint
from .clock import log_line
from .data import FILM_CAPTIONS, ClipSource
from .evaluation import evaluate_model, round_trip_figures, true_motion_figures, write_figures
from .latent_clips import encode_clips
from .media import fetch, has_media
from .model_card import write_model_card
from .moves import MOVES
from .presets import Preset, preset
from .sampling import held_out_pictures, sheet_rows
from .sheet import write_sheet
from .text_encoder import CaptionEncoder
from .vae_training import train_vae, trained_vae
from .weights import write_weights

if TYPE_CHECKING:
    from .unet_training import TrainedPair

_SHEET_STEPS = 10
_SHOTS, _SHOT_STRIDE = 8, 1
"""Held-out film shots to evaluate, and the stride at which they are read."""


def train_demo_model(
    preset_name: str,
    work: Path,
    output: Path,
    minutes: float,
    vae_minutes: float,
    *,
    size: int | None = None,
    device: str = "cpu",
    threads: int = 2,
    seed: int = 0,
    start: Path | None = None,
) -> None:
    """Everything from the packages to the weights in `output`; each part resumes where a killed run left it.

    Where ``clips.pt``, ``held_out_clips.pt`` and ``vae.pt`` are in `work` but the media are not (carried to a machine
    without network), only the U-Net is trained, without sample sheets.
    """
    torch.set_num_threads(threads)
    chosen = preset(preset_name, size)
    work.mkdir(parents=True, exist_ok=True)
    # A machine without network needs only the states and the encoded clips: see the docstring.
    encoded = all((work / name).is_file() for name in ("clips.pt", "held_out_clips.pt", "vae.pt"))
    source = held_out = None
    if has_media(work) or not encoded:
        fetch(work)
        source = ClipSource(work, chosen.size, chosen.frames)
        held_out = ClipSource(work, chosen.size, chosen.frames, held_out=True)
        train_vae(chosen, source, work, vae_minutes, device=device, seed=seed, start=start)
    vae = trained_vae(chosen, work)
    clips = encode_clips(source, vae, work, chosen.clips, device=device, seed=seed)
    scaling = clips.scaling_factor
    name, count = "held_out_clips.pt", chosen.validation_clips
    unseen = encode_clips(held_out, vae, work, count, name=name, scaling_factor=scaling, device=device, seed=seed)

    def draw_sheet(step: int, pair: TrainedPair) -> None:
        if held_out is None:
            return
        vae = scaled_vae(chosen, work).to(device)
        rows = sheet_rows(pair.unet, vae, CaptionEncoder(pair.text_encoder), held_out, _SHEET_STEPS)
        write_sheet(work / "sheets" / f"unet_{step:06d}.png", rows)

    # Loaded when its turn comes: the autoencoder's training needs none of it.
    from .unet_training import train_unet

    train_unet(
        chosen, clips, work, minutes, validation=unseen, device=device, seed=seed, start=start, on_sheet=draw_sheet
    )
    export_demo_model(preset_name, work, output, size=size, device=device)


def scaled_vae(chosen: Preset, work: Path) -> AutoencoderKL:
    """The trained autoencoder with the scaling factor of the encoded clips."""
    vae = trained_vae(chosen, work)
    clips = load_checkpoint(work / "clips.pt")
    if clips is None:
        raise FileNotFoundError(f"{work / 'clips.pt'} is missing: encode the clips first.")
    vae.register_to_config(scaling_factor=clips["scaling_factor"])
    return vae


def export_demo_model(
    preset_name: str, work: Path, output: Path, *, size: int | None = None, device: str = "cpu", note: str = ""
) -> None:
    """Write weights, facts of the training and the model card under `output`.

    Args:
        device: what it was trained on, for the card.
        note: a sentence for the card about this training.
    """
    from .unet_training import trained_pair

    chosen = preset(preset_name, size)
    total = write_weights(output, trained_pair(chosen, work), scaled_vae(chosen, work))
    facts: dict[str, Any] = {"preset": chosen.name, "size": chosen.size, "clips": chosen.clips, "bytes": total}
    facts |= {"hardware": _hardware(device), "note": note}
    for part, batch in (("vae", chosen.vae_batch), ("unet", chosen.batch)):
        state = load_checkpoint(work / f"{part}.pt")
        assert state is not None
        facts[part] = {
            "steps": state["step"],
            "batch": batch,
            "minutes": round(state["seconds"] / 60, 1),
            "loss": round(state["loss"], 4),
        }
        if "validation" in state:
            facts[part]["validation"] = state["validation"]
    # Figures that lie there are those of other weights.
    (output / "evaluation.json").unlink(missing_ok=True)
    (output / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    write_model_card(output)


def evaluate_demo_model(
    bundle: Path,
    model: Path,
    work: Path,
    output: Path,
    *,
    steps: int,
    moves_per_photo: int,
    long_videos: int,
    threads: int = 2,
    seed: int = 0,
) -> None:
    """Evaluate an exported bundle on the held-out photos and shots; write the figures, also into the model's card.

    The videos are kept under ``work/evaluation`` as pictures, for ``consisti2v evaluate``.
    """
    torch.set_num_threads(threads)
    fetch(work)
    animate = ImageToVideo.from_bundle(bundle, threads=threads, device="cpu")
    spec = animate.bundle.manifest.model
    source = ClipSource(work, spec.height, spec.frames, held_out=True)
    rows: list[torch.Tensor] = []

    def keep(condition: str, videos: list[np.ndarray]) -> None:
        folder = work / "evaluation" / condition.replace(" ", "_").replace(",", "")
        for number, video in enumerate(videos):
            target = folder / f"{number:03d}"
            target.mkdir(parents=True, exist_ok=True)
            save_frames(video, target / "frame.png")
            if condition == "prompted":
                rows.append(torch.from_numpy(video[::3]).permute(0, 3, 1, 2).float() / 127.5 - 1)

    pictures = held_out_pictures(source)
    figures = evaluate_model(
        animate,
        pictures,
        [clip.frames for clip in source.shot_clips(_SHOTS, _SHOT_STRIDE)],
        FILM_CAPTIONS[0],
        steps=steps,
        moves_per_photo=moves_per_photo,
        long_videos=long_videos,
        seed=seed,
        progress=lambda line: log_line(work / "evaluation.log", line, True),
        on_videos=keep,
    )
    write_sheet(work / "sheets" / "evaluation.png", rows)
    figures["round trip"] = round_trip_figures(animate, pictures)
    rng = np.random.default_rng(seed)
    figures["true camera moves"] = true_motion_figures(
        (move, source.moved(*photo, move, 3, rng).frames) for photo in source.photos[:2] for move in MOVES
    )
    write_figures(output, figures)
    write_figures(model / "evaluation.json", figures)
    write_model_card(model)


def _hardware(device: str) -> str:
    if device.startswith("cuda"):
        return f"one {torch.cuda.get_device_name(device)}"
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"no GPU; {os.cpu_count()} cores of {names[0].partition(': ')[2] if names else platform.machine()}"
