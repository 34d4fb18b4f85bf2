"""What a bundle's tokenizer may consist of: the parts of CLIP's tokenizer, which every export writes.

The ``tokenizers`` library runs whatever its JSON file describes. Some parts end the process (replacements that multiply
a text, compiled character maps), raise a panic of Rust (regular expressions that backtrack without end), or draw random
numbers (dropout). So the file is looked through before the library sees it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..files.guarded_read import unique_entries

_SPACES = {"Regex": r"\s+"}
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_PATTERNS = ({"Regex": _CLIP_WORDS}, {"Regex": r"<\|startoftext\|>|<\|endoftext\|>|" + _CLIP_WORDS})
_MAX_PARTS = 16
_MAX_SPECIAL_TOKENS = 16


def _always(part: Mapping[str, Any]) -> bool:
    return True


_NORMALIZERS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "NFC": _always,
    "Lowercase": _always,
    "Replace": lambda part: part.get("pattern") == _SPACES and part.get("content") == " ",
}
_PRE_TOKENIZERS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "Split": lambda part: part.get("pattern") in _CLIP_PATTERNS,
    "ByteLevel": _always,
}
_POST_PROCESSORS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "RobertaProcessing": _always,
    "ByteLevel": _always,
    "TemplateProcessing": lambda part: (
        isinstance(part.get("single"), list)
        and isinstance(part.get("special_tokens"), dict)
        and len(part["single"]) <= _MAX_SPECIAL_TOKENS
        and all(
            isinstance(token, dict) and isinstance(token.get("ids"), list) and len(token["ids"]) == 1
            for token in part["special_tokens"].values()
        )
    ),
}
_DECODERS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {"ByteLevel": _always, "BPEDecoder": _always}


def check_tokenizer_json(content: bytes | str) -> None:
    """Refuse a ``tokenizer.json`` that is not of CLIP's kind.

    Raises:
        ValueError: what is wrong, in a few words.
    """
    try:
        value = json.loads(content, object_pairs_hook=unique_entries)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    for name, inner, allowed in (
        ("normalizer", "normalizers", _NORMALIZERS),
        ("pre_tokenizer", "pretokenizers", _PRE_TOKENIZERS),
        ("post_processor", "processors", _POST_PROCESSORS),
        ("decoder", "decoders", _DECODERS),
    ):
        for part in _parts(value.get(name), inner, name):
            kind = part.get("type")
            if not isinstance(kind, str) or kind not in allowed or not allowed[kind](part):
                raise ValueError(f"its {name} has a part {str(kind)[:40]!r} that CLIP's tokenizer does not have")
    _check_model(value.get("model"))


def _parts(value: Any, inner: str, name: str) -> list[Mapping[str, Any]]:
    """The parts of a step: none, one, or a sequence without further sequences in it."""
    parts: Any = [] if value is None else [value]
    if isinstance(value, dict) and value.get("type") == "Sequence":
        parts = value.get(inner)
    if not isinstance(parts, list) or len(parts) > _MAX_PARTS or not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"its {name} is none of CLIP's tokenizer")
    return parts


def _check_model(model: Any) -> None:
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise ValueError("its model is no byte-pair encoding")
    if model.get("dropout") is not None:
        raise ValueError("its model has dropout, so that a prompt would have other tokens each time")
    if model.get("continuing_subword_prefix"):
        raise ValueError("its model marks the inner parts of words, which CLIP's tokenizer does not")
    unknown = model.get("unk_token")
    if unknown is not None and unknown not in model["vocab"]:
        raise ValueError("its token for unknown text is not in its vocabulary")


@contextmanager
def tokenizer_failures() -> Iterator[None]:
    """Turn what the library raises, a panic of Rust included, into a ``ValueError``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # PanicException is no Exception
        raise ValueError(str(error)[:300]) from None
