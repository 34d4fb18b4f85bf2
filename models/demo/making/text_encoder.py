"""The demo model's text encoder: CLIP's architecture and vocabulary, small, trained together with the U-Net."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase

from ....export.part_configs import TEXT_LENGTH
from ....export.vocabulary import clip_tokenizer
from .presets import Preset


def build_text_encoder(preset: Preset) -> CLIPTextModel:
    """An untrained text encoder of the preset's sizes over CLIP's 49,408 tokens."""
    config = CLIPTextConfig(
        hidden_size=preset.text_width,
        intermediate_size=4 * preset.text_width,
        num_hidden_layers=preset.text_layers,
        num_attention_heads=4,
        hidden_act="gelu",
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )
    encoder = CLIPTextModel(config)
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


class CaptionEncoder:
    """Texts to what the U-Net attends to, through the tokenizer as the runtime uses it (77 tokens, no mask)."""

    def __init__(self, encoder: CLIPTextModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
        self.encoder = encoder
        self.tokenizer = tokenizer or clip_tokenizer()
        self._known: dict[str, list[int]] = {}

    def __call__(self, texts: list[str]) -> Tensor:
        """n texts -> [n, 77, width]; equal texts are encoded once."""
        distinct = list(dict.fromkeys(texts))
        states, _ = self.states_and_ends(distinct)
        return states[[distinct.index(text) for text in texts]]

    def states_and_ends(self, texts: list[str]) -> tuple[Tensor, list[int]]:
        """n texts -> [n, 77, width], and the position of each text's end token."""
        ids = torch.tensor([self._ids(text) for text in texts], device=next(self.encoder.parameters()).device)
        states: Tensor = self.encoder(input_ids=ids).last_hidden_state
        end = self.encoder.config.eos_token_id
        return states, (ids == end).int().argmax(dim=1).tolist()

    def _ids(self, text: str) -> list[int]:
        if text not in self._known:
            encoded = self.tokenizer(text, padding="max_length", max_length=TEXT_LENGTH, truncation=True)
            self._known[text] = list(encoded.input_ids)
        return self._known[text]
