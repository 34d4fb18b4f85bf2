"""Training of the video U-Net and the text encoder together, as ConsistI2V (arXiv:2402.04324) trains its U-Net."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from ....export.unet import VideoUNet
from .checkpoint import Ema, load_checkpoint, random_state, restore_random_state, save_checkpoint
from .clock import Clock, learning_rate, log_line
from .denormals import flushed_denormals
from .latent_clips import LatentClips
from .learning_rates import RelativeSteps
from .noising import loss_weights, make_noise, noisy_batch, schedule
from .presets import Preset
from .text_encoder import CaptionEncoder, build_text_encoder
from .text_training import train_text_encoder
from .unet_start import start_as_camera
from .vae_training import TrainingRun
from .weights import start_from

_EMA_DECAY = 0.98
_KEPT_SHARE = 0.25
"""Of the way from the start to the averaged weights, what is kept as the trained model: interpolation keeps most of
what a short training gains (Wortsman et al. 2022, arXiv:2109.01903). At the far end the branches add large numbers that
cancel, and half precision does not hold them."""
_LOG_EVERY = 20


class TrainedPair(nn.Module):
    """U-Net and text encoder: what is optimised, averaged and saved together."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.unet = VideoUNet.from_config(preset.unet_config())
        self.text_encoder: CLIPTextModel = build_text_encoder(preset)
        # As published, the U-Net's training leaves the text encoder alone: see .text_training.
        self.text_encoder.requires_grad_(False)


_START_CLIPS = 6


def start_pair(pair: TrainedPair, preset: Preset, clips: LatentClips, seed: int, log: Callable[[str], None]) -> None:
    """The text encoder's own training, and the U-Net's start (:mod:`.unet_start`), in place."""
    encoder = pair.text_encoder
    encoder.requires_grad_(True)
    encoder.get_input_embeddings().requires_grad_(False)

    def on_step(step: int, loss: float) -> None:
        if step % 100 == 0:
            log(f"text step {step} loss {loss:.5f}")

    train_text_encoder(encoder, preset.text_steps, seed=seed, on_step=on_step)
    encoder.requires_grad_(False)
    start_as_camera(pair.unet, clips.latents[:_START_CLIPS].float())


class CaptionStates:
    """States of captions, encoded once: the text encoder does not change any more."""

    def __init__(self, encode: CaptionEncoder) -> None:
        self._encode = encode
        self._known: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> Tensor:
        """n texts -> [n, 77, width]."""
        for text in texts:
            if text not in self._known:
                self._known[text] = self._encode([text])[0]
        return torch.stack([self._known[text] for text in texts])


def unet_loss(
    pair: TrainedPair, encode: CaptionStates, clips: LatentClips, rows: Tensor, abar: Tensor, rng: np.random.Generator
) -> Tensor:
    """Weighted squared error of the predicted noise for one batch of clips."""
    device = abar.device
    batch = noisy_batch(clips.latents[rows].float(), abar.cpu(), rng, str(device))
    captions = [
        "" if dropped else clips.captions[int(row)] for row, dropped in zip(rows, batch.text_dropped, strict=True)
    ]
    strides = clips.strides[rows].to(device)
    predicted = pair.unet(batch.sample, batch.timesteps, encode(captions), batch.first_frame, strides)
    errors = (predicted.float() - batch.noise).pow(2).flatten(1).mean(1)
    return (batch.weights * errors).mean()


@torch.no_grad()
def validation_loss(pair: TrainedPair, encode: CaptionStates, clips: LatentClips, abar: Tensor) -> float:
    """The training loss on clips that are not trained on, always with the same noise and evenly spread timesteps."""
    device, count = abar.device, len(clips)
    rng, total = np.random.default_rng(5), 0.0
    weights = loss_weights(abar)
    pair.eval()
    for row in range(count):
        clean = clips.latents[row : row + 1].float().transpose(1, 2)
        timestep = torch.tensor([int(len(abar) * (row + 0.5) / count)])
        noise = make_noise(tuple(clean.shape), rng)
        level = abar.cpu()[timestep].view(-1, 1, 1, 1, 1)
        noisy = (level.sqrt() * clean + (1 - level).sqrt() * noise)[:, :, 1:].to(device)
        text, stride = encode(clips.captions[row : row + 1]), clips.strides[row : row + 1].to(device)
        predicted = pair.unet(noisy, timestep.to(device), text, clean[:, :, :1].to(device), stride)
        total += float(weights[timestep]) * float((predicted.float().cpu() - noise[:, :, 1:]).pow(2).mean())
    pair.train()
    pair.text_encoder.eval()
    return total / count


@flushed_denormals()  # far-off attention weights and silent branches make many numbers too small
def train_unet(
    preset: Preset,
    clips: LatentClips,
    work: Path,
    minutes: float,
    *,
    validation: LatentClips | None = None,
    device: str = "cpu",
    seed: int = 0,
    start: Path | None = None,
    max_steps: int | None = None,
    checkpoint_seconds: float = 120.0,
    echo: bool = True,
    on_sheet: Callable[[int, TrainedPair], None] | None = None,
    sheet_seconds: float = 600.0,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> TrainingRun:
    """Train until the clock runs out or `max_steps` are done, or resume from ``unet.pt``.

    Leaves ``unet.pt`` (state, averaged weights among it) and ``unet.log``.

    Args:
        minutes: budget over all runs; the learning rate falls towards its end.
        validation: clips on which the loss is measured before and after the training; kept in the state.
        device: cpu or cuda; on cuda in bfloat16.
        start: a folder of written weights to begin with instead of random ones, where there is no state.
        max_steps: stops earlier; the learning rate then follows the steps instead of the clock.
        checkpoint_seconds: time between two states on disk.
        on_sheet: called about every `sheet_seconds` with the step and the averaged weights, to draw samples.
        on_step: called with step and loss after each step.
    """
    path = work / "unet.pt"
    torch.manual_seed(seed)
    pair = TrainedPair(preset)
    if start is not None:
        start_from(start / "unet", pair.unet)
        start_from(start / "text_encoder", pair.text_encoder)
    state = load_checkpoint(path, device)
    if start is None and state is None:
        start_pair(pair, preset, clips, seed, lambda line: log_line(work / "unet.log", line, echo))
    pair.to(device).train()
    pair.text_encoder.eval()
    encode = CaptionStates(CaptionEncoder(pair.text_encoder))
    optimiser = torch.optim.AdamW(_parameter_groups(pair), lr=preset.learning_rate, betas=(0.9, 0.99))
    relative = RelativeSteps(pair.unet)
    ema = Ema(pair, _EMA_DECAY)
    rng, generator = np.random.default_rng([seed, 2]), torch.Generator().manual_seed(seed)
    abar = schedule().to(device)
    step, spent, mean_loss = 0, 0.0, float("nan")
    validated: dict[str, float] = {}
    begun = {name: value.detach().clone() for name, value in pair.state_dict().items()}
    if state is not None:
        pair.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        ema.weights = state["ema"]
        restore_random_state(rng, generator, state["random"])
        step, spent, mean_loss, validated = state["step"], state["seconds"], state["loss"], state["validation"]
        begun = state["start"]

    def validate(when: str, weights: TrainedPair) -> None:
        if validation is not None:
            validated[when] = round(validation_loss(weights.to(device), encode, validation, abar), 5)
            log_line(work / "unet.log", f"unet step {step} validation loss {validated[when]:.5f}", echo)

    if state is None:
        validate("start", pair)
    clock = Clock(minutes, spent)

    def save() -> None:
        save_checkpoint(
            path,
            {
                "model": pair.state_dict(),
                "optimiser": optimiser.state_dict(),
                "ema": ema.weights,
                "start": begun,
                "random": random_state(rng, generator),
                "step": step,
                "seconds": clock.spent,
                "loss": mean_loss,
                "validation": validated,
            },
        )

    saved = drawn = clock.spent
    while clock.progress < 1 and (max_steps is None or step < max_steps):
        rows = torch.from_numpy(rng.integers(0, len(clips), preset.batch))
        progress = clock.progress if max_steps is None else step / max_steps
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(preset.learning_rate, step, progress)
        with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
            loss = unet_loss(pair, encode, clips, rows, abar, rng)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(pair.parameters(), 1.0)
        relative.step(optimiser)
        ema.update(pair, step)
        value = loss.item()
        step += 1
        mean_loss = value if step == 1 else 0.98 * mean_loss + 0.02 * value
        on_step(step, value)
        if step % _LOG_EVERY == 0:
            log_line(work / "unet.log", f"unet step {step} loss {mean_loss:.4f} {clock.spent:.0f} s", echo)
        if on_sheet is not None and clock.spent - drawn > sheet_seconds:
            on_sheet(step, averaged_pair(preset, ema.weights).to(device))
            drawn = clock.spent
        if clock.spent - saved >= checkpoint_seconds:
            save()
            saved = clock.spent
    validate("end of training", averaged_pair(preset, ema.weights))
    validate("kept", averaged_pair(preset, kept_weights(begun, ema.weights)))
    save()
    return TrainingRun(step, clock.spent, mean_loss)


def averaged_pair(preset: Preset, weights: dict[str, Tensor]) -> TrainedPair:
    """U-Net and text encoder with averaged weights, for inference, gates unfolded."""
    pair = TrainedPair(preset)
    pair.load_state_dict({name: value.cpu() for name, value in weights.items()})
    return pair.eval().requires_grad_(False)


def trained_pair(preset: Preset, work: Path) -> TrainedPair:
    """The weights that ``unet.pt`` leaves: see :func:`kept_weights`.

    Raises:
        FileNotFoundError: no U-Net was trained there.
    """
    state = load_checkpoint(work / "unet.pt")
    if state is None:
        raise FileNotFoundError(f"{work / 'unet.pt'} is missing: train the U-Net first.")
    return averaged_pair(preset, kept_weights(state["start"], state["ema"]))


def kept_weights(start: dict[str, Tensor], averaged: dict[str, Tensor]) -> dict[str, Tensor]:
    """A share of the way from the start to the averaged weights."""
    return {
        name: value + _KEPT_SHARE * (averaged[name] - value) if value.is_floating_point() else value
        for name, value in start.items()
    }


def _parameter_groups(pair: TrainedPair) -> list[dict[str, Any]]:
    """No weight decay: the start's few large weights are meant."""
    return [{"params": [p for p in pair.parameters() if p.requires_grad], "weight_decay": 0.0}]
