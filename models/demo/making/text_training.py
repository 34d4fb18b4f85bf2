"""The text encoder learns what captions say about the camera, before the U-Net is trained on it.

As in the published training (frozen CLIP), the U-Net then meets a finished text encoder. CLIP itself is not to be had
here, so this stage takes its place: on captions alone, the encoder learns to say at and after the end of a text which
way the camera moves, in fixed channels of its states. Random words around the phrases teach it to ignore the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTextModel

from .captions import MOVE_PHRASES
from .text_encoder import CaptionEncoder

MOVE_CODES: dict[str, tuple[float, float, float, float]] = {
    "pan_left": (-1, 0, 0, 0),
    "pan_right": (1, 0, 0, 0),
    "pan_up": (0, -1, 0, 0),
    "pan_down": (0, 1, 0, 0),
    "zoom_in": (0, 0, 1, 0),
    "zoom_out": (0, 0, -1, 0),
    "rotate_clockwise": (0, 0, 0, 1),
    "rotate_counterclockwise": (0, 0, 0, -1),
    "still": (0, 0, 0, 0),
}
"""Camera right, camera down, growth and clockwise turn of the picture: text channels 0 to 3 at the end of a text."""
STILL_CHANNEL, NO_MOVE_CHANNEL = 4, 5
END_CHANNEL, BEGIN_CHANNEL = 6, 7
"""Flags: the end of the text and the padding after it; the token before the text."""
CODE_CHANNELS = 8
_BATCH = 48
_LEARNING_RATE = 3e-3
_MAX_FILLER = 5


def text_targets(moves: list[str | None], ends: list[int], length: int) -> tuple[Tensor, Tensor]:
    """What the states should say, and where: float [n, length, 8] and weights [n, length, 1].

    Args:
        moves: of :data:`MOVE_CODES`, or None where the text names no move.
        ends: position of each text's end token.
        length: tokens of a state.
    """
    target = torch.zeros(len(moves), length, CODE_CHANNELS)
    for row, (move, end) in enumerate(zip(moves, ends, strict=True)):
        if move is not None:
            target[row, end:, :4] = torch.tensor(MOVE_CODES[move])
        target[row, end:, STILL_CHANNEL] = float(move == "still")
        target[row, end:, NO_MOVE_CHANNEL] = float(move is None)
        target[row, end:, END_CHANNEL] = 1
    target[:, 0, BEGIN_CHANNEL] = 1
    weights = torch.ones(len(moves), length, CODE_CHANNELS)
    # Within the text the move is not known yet; only the flags are asked for there.
    for row, end in enumerate(ends):
        weights[row, 1:end, :END_CHANNEL] = 0
    return target, weights


def train_text_encoder(
    encoder: CLIPTextModel,
    steps: int,
    *,
    seed: int = 0,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Teach the moves, in place; returns the last mean squared error (averaged over about 50 steps).

    The token table stays fixed. Captions: a phrase of a move, or none, between up to five random words of CLIP's
    vocabulary on either side; one in ten is empty.
    """
    captions = CaptionEncoder(encoder)
    words = [word[:-4] for word in captions.tokenizer.get_vocab() if word.endswith("</w>") and word[:-4].isalpha()]
    words = sorted(word for word in words if word.isascii())
    taken = {word for phrases in MOVE_PHRASES.values() for phrase in phrases for word in phrase.split()}
    words = [word for word in words if word not in taken]
    moves: list[str | None] = [*MOVE_CODES, None]
    rng = np.random.default_rng([seed, 3])
    trained = [p for p in encoder.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    mean_loss = float("nan")
    encoder.train()
    for step in range(steps):
        chosen = [moves[i] for i in rng.integers(len(moves), size=_BATCH)]
        texts = [random_caption(move, words, rng) for move in chosen]
        states, ends = captions.states_and_ends(texts)
        target, weights = text_targets(chosen, ends, states.shape[1])
        loss = ((states[..., :CODE_CHANNELS] - target.to(states.device)).pow(2) * weights.to(states.device)).mean()
        for group in optimiser.param_groups:
            group["lr"] = _LEARNING_RATE * min(1.0, (step + 1) / 50) * (1 - 0.95 * step / steps)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        mean_loss = loss.item() if step == 0 else 0.98 * mean_loss + 0.02 * loss.item()
        on_step(step + 1, mean_loss)
    encoder.eval()
    return mean_loss


def random_caption(move: str | None, words: list[str], rng: np.random.Generator) -> str:
    """A phrase of the move between random words; without a move, words alone or nothing."""

    def filler() -> list[str]:
        return [words[i] for i in rng.integers(len(words), size=rng.integers(_MAX_FILLER + 1))]

    if move is None:
        return "" if rng.random() < 0.4 else " ".join(filler())
    phrases = MOVE_PHRASES[move]
    phrase = phrases[rng.integers(len(phrases))] if rng.random() < 0.6 else phrases[0]
    form = rng.integers(4)
    before, after = filler() if form in (1, 3) else [], filler() if form in (2, 3) else []
    return " ".join([*before, phrase, *after])
