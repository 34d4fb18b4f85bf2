"""Training of the demo model's autoencoder (Kingma and Welling 2014, arXiv:1312.6114; diffusers' AutoencoderKL)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .checkpoint import Ema, load_checkpoint, random_state, restore_random_state, save_checkpoint
from .clock import Clock, learning_rate, log_line
from .data import MAX_SHIFT, ClipSource, PicturePairs
from .denormals import flushed_denormals
from .presets import Preset
from .sheet import write_sheet
from .vae_start import start_as_interpolation
from .view_kernel import moved_latents
from .weights import start_from

_KL_WEIGHT = 1e-5
_EDGE_WEIGHT = 0.25
_EMA_DECAY = 0.995
_CHECKPOINT_SECONDS = 120.0


@dataclass(frozen=True)
class TrainingRun:
    """How far a training got."""

    steps: int
    seconds: float
    loss: float


def build_vae(preset: Preset, scaling_factor: float = 1.0) -> AutoencoderKL:
    """An autoencoder of the preset's sizes, 4 latent channels, at its start: see :mod:`.vae_start`."""
    levels = len(preset.vae_widths)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        block_out_channels=list(preset.vae_widths),
        layers_per_block=preset.vae_layers,
        latent_channels=4,
        norm_num_groups=preset.vae_widths[0] // 4,
        sample_size=preset.size,
        scaling_factor=scaling_factor,
    )
    start_as_interpolation(vae)
    return vae


def vae_loss(vae: AutoencoderKL, pairs: PicturePairs, generator: torch.Generator) -> Tensor:
    """L1 of pixels and of their differences (edges), and a small KL divergence to the unit normal.

    Of every second pair the latents are moved as the video's are, and must decode to the moved picture: without that
    the decoder draws its detail where the latents' positions are and not where the picture goes.

    Args:
        pairs: of an even number of pictures.
        generator: draws the posterior sample.
    """
    pictures = pairs.seen
    posterior = vae.encode(pictures).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(pictures.device)
    latents = posterior.mean + posterior.std * noise
    cell = pictures.shape[-1] // latents.shape[-1]
    right, down = (shift[::2] / cell for shift in (pairs.right, pairs.down))
    latents = torch.cat([moved_latents(latents[::2], right, down), latents[1::2]])
    out = vae.decode(latents).sample
    target = torch.cat([pairs.moved[::2], pictures[1::2]])
    # What a moved view shows beyond the first is not known.
    margin = MAX_SHIFT + cell
    inner = torch.zeros_like(target[:, :1])
    inner[: len(right), :, margin:-margin, margin:-margin] = 1
    inner[len(right) :] = 1
    error = (out - target) * inner
    edges = sum(torch.diff(error, dim=axis).abs().sum() for axis in (2, 3))
    count = 3 * inner.sum()
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    pixels = error.abs().sum() + error.pow(2).sum()
    loss: Tensor = (pixels + _EDGE_WEIGHT * edges) / count + _KL_WEIGHT * kl
    return loss


@flushed_denormals()  # the optimiser's averages of vanishing gradients cost many times the rest
def train_vae(
    preset: Preset,
    source: ClipSource,
    work: Path,
    minutes: float,
    *,
    device: str = "cpu",
    seed: int = 0,
    start: Path | None = None,
    max_steps: int | None = None,
    echo: bool = True,
) -> TrainingRun:
    """Train until the clock runs out, or resume; leaves ``vae.pt`` (state), ``vae.log`` and ``sheets/vae_*.png``.

    Args: as of :func:`.unet_training.train_unet`.
    """
    path = work / "vae.pt"
    torch.manual_seed(seed)
    vae = build_vae(preset)
    if start is not None:
        start_from(start / "vae", vae)
    vae.to(device)
    if not preset.train_encoder:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    trained = [p for p in vae.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=preset.vae_learning_rate, betas=(0.9, 0.98), weight_decay=1e-4)
    ema = Ema(vae, _EMA_DECAY)
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    step, spent, mean_loss = 0, 0.0, float("nan")
    state = load_checkpoint(path, device)
    if state is not None:
        vae.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        ema.weights = state["ema"]
        restore_random_state(rng, generator, state["random"])
        step, spent, mean_loss = state["step"], state["seconds"], state["loss"]
    clock = Clock(minutes, spent)

    def save() -> None:
        save_checkpoint(
            path,
            {
                "model": vae.state_dict(),
                "optimiser": optimiser.state_dict(),
                "ema": ema.weights,
                "random": random_state(rng, generator),
                "step": step,
                "seconds": clock.spent,
                "loss": mean_loss,
            },
        )

    saved = clock.spent
    while clock.progress < 1 and (max_steps is None or step < max_steps):
        pairs = source.picture_pairs(rng, preset.vae_batch).to(device)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(preset.vae_learning_rate, step, clock.progress)
        loss = vae_loss(vae, pairs, generator)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        ema.update(vae, step)
        step += 1
        mean_loss = loss.item() if step == 1 else 0.98 * mean_loss + 0.02 * loss.item()
        if step % 20 == 0:
            log_line(work / "vae.log", f"vae step {step} loss {mean_loss:.4f} {clock.spent:.0f} s", echo)
        if step % 200 == 0:
            with torch.no_grad():
                write_sheet(work / "sheets" / f"vae_{step:06d}.png", [pairs.seen[:8], vae(pairs.seen[:8]).sample])
        if clock.spent - saved > _CHECKPOINT_SECONDS:
            save()
            saved = clock.spent
    save()
    return TrainingRun(step, clock.spent, mean_loss)


def trained_vae(preset: Preset, work: Path) -> AutoencoderKL:
    """The averaged weights of ``vae.pt``, for inference on the CPU; its scaling factor is not set yet.

    Raises:
        FileNotFoundError: no autoencoder was trained there.
    """
    state = load_checkpoint(work / "vae.pt")
    if state is None:
        raise FileNotFoundError(f"{work / 'vae.pt'} is missing: train the autoencoder first.")
    vae = build_vae(preset)
    vae.load_state_dict(state["ema"])
    return vae.eval().requires_grad_(False)
