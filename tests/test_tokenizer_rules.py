"""A tokenizer from anyone: what is not of CLIP's kind is refused before the library sees it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt import UserError
from consisti2v_rt.runtime.bundle.bundle import Bundle, hash_files
from consisti2v_rt.runtime.bundle.tokenizer_rules import check_tokenizer_json
from consisti2v_rt.runtime.bundle.typed_json import MANIFEST_NAME
from consisti2v_rt.runtime.text import PromptTokenizer

FILE = "tokenizer/tokenizer.json"


@pytest.fixture(scope="module")
def tokenizer(demo_bundle: Path) -> dict[str, Any]:
    """The demo's, with few words."""
    value: dict[str, Any] = json.loads((demo_bundle / FILE).read_text(encoding="utf-8"))
    value["model"] |= {"vocab": {"!": 0, "<|startoftext|>": 49406, "<|endoftext|>": 49407}, "merges": []}
    return value


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


BOMB = {"type": "Sequence", "normalizers": [replace({"String": "a"}, "a" * 64)] * 6}
SPLIT = {"type": "Split", "pattern": {"Regex": "^(([a-z ])+.)+$"}, "behavior": "Isolated", "invert": False}
SPECIAL = {"q": {"id": "q", "ids": [1] * 100, "tokens": ["q"] * 100}}
TEMPLATE = {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": SPECIAL}


@pytest.mark.parametrize(
    ("entry", "value", "says"),
    [
        ("normalizer", BOMB, "'Replace'"),
        ("normalizer", replace({"Regex": ""}, " "), "'Replace'"),
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAA="}, "'Precompiled'"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 1000}, "normalizer"),
        ("normalizer", {"type": "Sequence", "normalizers": [BOMB]}, "'Sequence'"),
        ("normalizer", [], "normalizer"),
        ("pre_tokenizer", SPLIT, "'Split'"),
        ("pre_tokenizer", {"type": ["Split"]}, "pre_tokenizer"),
        ("post_processor", TEMPLATE, "'TemplateProcessing'"),
        ("decoder", {"type": "Metaspace"}, "'Metaspace'"),
        ("model", {"type": "Unigram", "vocab": [["!", 0.0]], "unk_id": 5}, "byte-pair"),
        ("model", None, "byte-pair"),
    ],
)
def test_parts_that_clip_s_tokenizer_does_not_have(tokenizer, entry, value, says):
    with pytest.raises(ValueError, match=says):
        check_tokenizer_json(json.dumps(tokenizer | {entry: value}))


@pytest.mark.parametrize(
    ("entry", "value", "says"),
    [("dropout", 0.5, "dropout"), ("continuing_subword_prefix", "##", "inner parts"), ("unk_token", "no", "unknown")],
)
def test_models_that_panic_or_draw_random_numbers(tokenizer, entry, value, says):
    check_tokenizer_json(json.dumps(tokenizer))
    with pytest.raises(ValueError, match=says):
        check_tokenizer_json(json.dumps(tokenizer | {"model": tokenizer["model"] | {entry: value}}))


def test_what_parsers_read_in_two_ways(tokenizer):
    text = json.dumps(tokenizer)
    for content in (text[:-1] + ', "model": {}}', "[" * 100_000, "[]", "\x00"):
        with pytest.raises(ValueError, match=r"."):
            check_tokenizer_json(content)


def with_tokenizer(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> Bundle:
    value = json.loads((bundle / FILE).read_text(encoding="utf-8"))
    edit(value)
    (bundle / FILE).write_text(json.dumps(value), encoding="utf-8")
    data = json.loads((bundle / MANIFEST_NAME).read_text())
    data["files"][FILE] = dataclasses.asdict(hash_files(bundle, [FILE])[FILE])
    (bundle / MANIFEST_NAME).write_text(json.dumps(data))
    return Bundle.open(bundle)


@pytest.mark.slow
@pytest.mark.parametrize(
    "edit",
    [
        lambda value: value["post_processor"].update(sep=["<|endoftext|>", 60_000]),
        lambda value: value["normalizer"]["normalizers"].append(BOMB),
        lambda value: value.update(pre_tokenizer=SPLIT),
    ],
)
def test_a_bundle_with_such_a_tokenizer_is_refused_in_one_sentence(tmp_path, demo_bundle, edit):
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    with pytest.raises(UserError, match="no tokenizer of CLIP's kind") as caught:
        PromptTokenizer(with_tokenizer(bundle, edit))
    assert str(caught.value).isprintable() and str(caught.value).endswith("export the bundle again.")
