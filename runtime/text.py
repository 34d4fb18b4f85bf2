"""Prompts -> tokens -> text embeddings -> keys and values of every text attention, once per prompt."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..errors import UserError
from .bundle.bundle import Bundle
from .bundle.consistency import check_complete
from .bundle.tokenizer_rules import check_tokenizer_json, tokenizer_failures
from .files.guarded_read import TOKENIZER
from .session import Array, Session
from .stage_failure import check_finite

_log = logging.getLogger("consisti2v_rt")
KeyValues = dict[str, Array]
"""Of one prompt: each key or value of the text attention by name, [1, heads, 77, c / heads]."""
Texts = Sequence[Sequence[KeyValues]]
"""By guidance branch and video, the prompt's branch last."""


class PromptTokenizer:
    """CLIP tokenizer, padded and cut to the model's text length."""

    def __init__(self, bundle: Bundle) -> None:
        spec = bundle.manifest.tokenizer
        content = bundle.read(spec.file, TOKENIZER.max_bytes).tobytes()
        self._file, self._length = spec.file, spec.max_length
        try:
            check_tokenizer_json(content)
            with tokenizer_failures():
                self._tokenizer = Tokenizer.from_buffer(content)
        except ValueError as error:
            raise self._refusal(error) from None
        self._vocabulary = check_complete(bundle.manifest, bundle.graph, self._tokenizer)
        self._tokenizer.enable_truncation(spec.max_length)
        self._tokenizer.enable_padding(length=spec.max_length, pad_id=spec.pad_token_id, pad_token=spec.pad_token)
        # Its special tokens are in no vocabulary list: an empty prompt has all of them.
        self("")

    def __call__(self, prompt: str) -> NDArray[np.int64]:
        """int64 [1, max_length]; a longer prompt is cut, as published, and a warning says so."""
        try:
            with tokenizer_failures():
                encoding = self._tokenizer.encode(prompt)
        except ValueError as error:
            raise self._refusal(error) from None
        rows = self._vocabulary
        if len(encoding.ids) != self._length or (rows is not None and max(encoding.ids) >= rows):
            raise self._refusal(f"it does not give {self._length} tokens of the text encoder's vocabulary")
        if encoding.overflowing:
            _log.warning("prompt %r is longer than the model's %d tokens: the rest was cut", prompt[:40], self._length)
        return np.array([encoding.ids], dtype=np.int64)

    def _refusal(self, reason: object) -> UserError:
        shown = str(reason).rstrip(".")
        return UserError(f"bundle file {self._file} is no tokenizer of CLIP's kind ({shown}): export the bundle again.")


class TextConditioner:
    """Text encoder and conditioning stage behind a small cache, so that a repeated prompt costs nothing.

    Args:
        precision: what the stages run in; an error about values that are not finite names it.
    """

    def __init__(self, tokenizer: PromptTokenizer, precision: str = "fp32", capacity: int = 8) -> None:
        self._tokenizer, self._precision = tokenizer, precision
        self._capacity = capacity
        self._cache: OrderedDict[str, KeyValues] = OrderedDict()

    def cached(self, prompt: str) -> KeyValues | None:
        if prompt in self._cache:
            self._cache.move_to_end(prompt)
        return self._cache.get(prompt)

    def encode(self, prompt: str, text_encoder: Session) -> NDArray[np.float32]:
        """Text embeddings [1, 77, text width]."""
        text_encoder.inputs["input_ids"][...] = self._tokenizer(prompt)
        text_encoder.run()
        check_finite("text_encoder", self._precision, text_encoder.outputs.values())
        return cast(NDArray[np.float32], text_encoder.outputs["text_embeddings"])

    def condition(self, prompt: str, embeddings: NDArray[np.float32], conditioning: Session) -> KeyValues:
        """Keys and values, each [1, heads, 77, c / heads]; kept in the cache."""
        conditioning.inputs["text_embeddings"][...] = embeddings
        conditioning.run()
        check_finite("conditioning", self._precision, conditioning.outputs.values())
        result = {name: array.copy() for name, array in conditioning.outputs.items()}
        self._cache[prompt] = result
        while len(self._cache) > self._capacity:
            self._cache.popitem(last=False)
        return result
