"""The text encoder: CLIP's architecture and vocabulary, small. The one part that learns.

CLIP itself is not to be had by package name. On captions alone this one learns to say, at the end of a text, which way
the camera moves, in fixed channels of its states. Random words around the phrases teach it to ignore the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from ....export.vocabulary import clip_tokenizer
from .moves import MOVES
from .prompts import MOVE_PHRASES

TEXT_WIDTH, TEXT_LENGTH = 32, 77
END, BEGIN = 4, 5
"""Flags of the token that ends a text and of the one before it; channels 0 to 3 are the end's camera code."""
_CHANNELS = 6
_BATCH, _LEARNING_RATE, _MAX_FILLER = 48, 3e-3, 5


def build_text_encoder(seed: int = 0) -> CLIPTextModel:
    """An untrained text encoder over CLIP's 49,408 tokens."""
    torch.manual_seed(seed)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            hidden_act="gelu",
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=1,
        )
    )
    # CLIP's own start (standard deviation 0.02) is for long trainings: with it, the words of a caption hardly
    # differ at first from the padding around them.
    for module in encoder.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.5 if module.weight.shape[0] > TEXT_LENGTH else 0.25)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    # The token table stays as it is: random vectors tell words apart, and most tokens never occur in training.
    encoder.get_input_embeddings().requires_grad_(False)
    return encoder


def ids_of(tokenizer: Any, texts: list[str]) -> Tensor:
    """Texts as the runtime makes them (77 tokens, no mask): int64 [n, 77]."""
    encoded = tokenizer(texts, padding="max_length", max_length=TEXT_LENGTH, truncation=True)
    return torch.tensor(encoded.input_ids)


def train_text_encoder(steps: int = 2000, seed: int = 0) -> tuple[CLIPTextModel, float]:
    """The finished text encoder, and its last squared error (mean of about 50 steps)."""
    encoder, tokenizer = build_text_encoder(seed), clip_tokenizer()
    taken = {word for phrases in MOVE_PHRASES.values() for phrase in phrases for word in phrase.split()}
    words = sorted(word.removesuffix("</w>") for word in tokenizer.get_vocab() if word.endswith("</w>"))
    words = [word for word in words if word.isalpha() and word.isascii() and word not in taken]
    # One word of a phrase says nothing by itself ("a cat turns its head in the sun"), unless it is a whole phrase.
    alone = sorted(taken - {phrase for phrases in MOVE_PHRASES.values() for phrase in phrases})
    common = ["a", "the", "of", "on", "and", "with", "in"]
    words += alone * (len(words) // (4 * len(alone))) + common * (len(words) // 20)
    moves: list[str | None] = [*MOVES, None]
    rng = np.random.default_rng([seed, 3])
    trained = [p for p in encoder.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    mean_loss = 1.0
    encoder.train()
    for step in range(steps):
        chosen = [moves[i] for i in rng.integers(len(moves), size=_BATCH)]
        ids = ids_of(tokenizer, [random_caption(move, words, rng) for move in chosen])
        target, weights = targets(chosen, ids)
        states = encoder(input_ids=ids).last_hidden_state[..., :_CHANNELS]
        loss = ((states - target).pow(2) * weights).sum() / len(chosen)
        for group in optimiser.param_groups:
            group["lr"] = _LEARNING_RATE * min(1.0, (step + 1) / 50) * (1 - step / steps)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        mean_loss += (0.02 if step else 1.0) * (loss.item() - mean_loss)
    return encoder.eval().requires_grad_(False), mean_loss


def targets(moves: list[str | None], ids: Tensor) -> tuple[Tensor, Tensor]:
    """What the states of texts should say, and how much that counts: float [n, 77, 6] each."""
    target, weights = torch.zeros(*ids.shape, _CHANNELS), torch.zeros(*ids.shape, _CHANNELS)
    weights[..., [END, BEGIN]] = 1 / TEXT_LENGTH
    rows, ends = torch.arange(len(ids)), (ids == 49407).int().argmax(1)
    target[:, 0, BEGIN] = target[rows, ends, END] = 1
    # The U-Net weighs these two tokens against each other: an error of a flag is one of the camera's speed.
    weights[:, 0] = 4
    weights[rows[:, None], ends[:, None], torch.tensor([0, 1, 2, 3, END, BEGIN])] = 4
    for row, move in enumerate(moves):
        if move is not None:
            target[row, ends[row], :4] = torch.tensor(MOVES[move])
    return target, weights


def random_caption(move: str | None, words: list[str], rng: np.random.Generator) -> str:
    """A phrase of the move, or none, between random words; a text without a move is empty in two of five cases."""

    def filler() -> list[str]:
        return [words[i] for i in rng.integers(len(words), size=rng.integers(_MAX_FILLER + 1))]

    if move is None:
        return "" if rng.random() < 0.4 else " ".join(filler())
    phrases = MOVE_PHRASES[move]
    phrase = phrases[rng.integers(len(phrases))] if rng.random() < 0.6 else phrases[0]
    form = rng.integers(4)
    before, after = " ".join(filler() if form in (1, 3) else []), " ".join(filler() if form in (2, 3) else [])
    return (", " if rng.random() < 0.5 else " ").join(part for part in (before, phrase, after) if part)
