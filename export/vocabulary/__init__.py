"""A CLIP tokenizer from the vocabulary kept here, for models that bring none."""

from __future__ import annotations

import gzip
from importlib import resources

from transformers import CLIPTokenizer

# The file lists 262,144 - 256 merges after a header; CLIP uses the first 48,894: 49,152 tokens less 256 bytes (plain
# and word-final) and 2 specials.
_MERGES = 49152 - 256 - 2


def clip_tokenizer(pad_token: str = "!") -> CLIPTokenizer:
    """The CLIP tokenizer, 49,408 tokens. Stable Diffusion 2 pads with "!" (id 0)."""
    packed = resources.files(__package__).joinpath("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")
    merges = lines[1 : _MERGES + 1]
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge.split()) for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(
        vocab=vocabulary, merges=[tuple(merge.split()) for merge in merges], pad_token=pad_token, model_max_length=77
    )


def _byte_letters() -> list[str]:
    """One printable letter per byte, printable bytes first: the order that gives CLIP's token ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
