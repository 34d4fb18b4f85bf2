"""A bundle from anyone: nothing outside it is touched, nothing unrecorded is used, and what was hashed is what runs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consisti2v_rt import ImageToVideo, UserError
from consisti2v_rt.runtime.bundle.bundle import Bundle, hash_files
from consisti2v_rt.runtime.bundle.consistency import check_sizes
from consisti2v_rt.runtime.bundle.inner_path import check_inner_path
from consisti2v_rt.runtime.bundle.manifest import Manifest
from consisti2v_rt.runtime.bundle.typed_json import MANIFEST_NAME
from consisti2v_rt.runtime.session import OnnxCpuSession
from consisti2v_rt.runtime.text import PromptTokenizer

STAGE = "conditioning"


@pytest.fixture
def copy(tmp_path: Path, demo_bundle: Path) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


def change(bundle: Path, edit: Callable[[Any], None]) -> None:
    data = json.loads((bundle / MANIFEST_NAME).read_text())
    edit(data)
    (bundle / MANIFEST_NAME).write_text(json.dumps(data))


def rehash(bundle: Path, *names: str) -> None:
    records = {name: dataclasses.asdict(record) for name, record in hash_files(bundle, names).items()}
    change(bundle, lambda data: data["files"].update(records))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    sentence = str(caught.value)
    assert sentence.endswith(".") and sentence.isprintable() and len(sentence) < 1000
    return sentence


# -- names -------------------------------------------------------------------------------------------------------------

BAD_NAMES = ["../x", "x", "", "a/b", "..", "unet\0", "UNET", "x" * 100_000, "\u202e", "/etc/passwd"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_are_the_known_ones(demo_bundle, name):
    text = (demo_bundle / MANIFEST_NAME).read_text()
    digest = "0" * 64
    engine = {"stage": "unet", "file": "engines/a", "target": "sm89", "backend": "tensorrt-rtx", "version": "1.7"}
    engine |= {"precision": "fp16", "compute_capabilities": ["8.9"], "onnx_sha256": digest}
    kernel = {"name": "guidance", "file": "engines/a", "compute_capability": "8.9", "source_sha256": digest}
    kernel |= {"entry_points": []}

    def with_engine(data: Any, **entries: Any) -> None:
        data["files"]["engines/a"] = {"sha256": digest, "bytes": 0}
        data["engines"] = [engine | entries]

    def with_kernel(data: Any, **entries: Any) -> None:
        data["files"]["engines/a"] = {"sha256": digest, "bytes": 0}
        data["kernels"] = [kernel | entries]

    edits: list[Callable[[Any], None]] = [
        lambda data: data["stages"].update({name: data["stages"]["unet"]}),
        lambda data: data["stages"]["unet"].update(precision=name),
        lambda data: data.update(variants={name: {"unet": data["stages"]["unet"]}}),
        lambda data: data.update(variants={"fp16": {name: data["stages"]["unet"]}}),
        lambda data: data["files"].update({"a": {"sha256": name, "bytes": 0}}),
        lambda data: with_engine(data, stage=name),
        lambda data: with_engine(data, precision=name),
        lambda data: with_engine(data, compute_capabilities=[name]),
        lambda data: with_engine(data, onnx_sha256=name),
        lambda data: with_kernel(data, compute_capability=name),
        lambda data: with_kernel(data, source_sha256=name),
    ]
    if not name.isalnum() or len(name) > 64:
        edits += [lambda data, entry=entry: with_engine(data, **{entry: name}) for entry in ("target", "backend")]
        edits.append(lambda data: with_kernel(data, name=name))
    for edit in edits:
        data = json.loads(text)
        edit(data)
        refusal(lambda data=data: Manifest.from_json(json.dumps(data)))
    for entries in ({}, {"compute_capabilities": ["8.0+"]}):
        data = json.loads(text)
        with_engine(data, **entries)
        Manifest.from_json(json.dumps(data))


def test_a_stage_named_out_of_the_bundle_writes_nothing(copy, consisti2v, listing):
    change(copy, lambda data: data["stages"].update({"../x": data["stages"]["unet"]}))
    before = listing(copy.parent)
    assert "'../x'" in consisti2v("build", copy, "--target", "sm89", "--stages", "../x").refusal()
    assert listing(copy.parent) == before


@pytest.mark.parametrize(
    "path",
    ["a//b", "./a", "a/./b", "a/", "CON", "a/nul.txt", "com1", "a\0b", "a\nb", "a*", 'a"', "x" * 300, "a/" * 600 + "b"],
)
def test_paths_that_some_system_takes_for_others(path):
    assert "no plain path" in refusal(lambda: check_inner_path(path))


@pytest.mark.parametrize("name", ["UNET/unet.onnx", "unet/unet.onnx.", "unet /unet.onnx", "Bundle.json"])
def test_two_names_of_one_file(demo_bundle, name):
    data = json.loads((demo_bundle / MANIFEST_NAME).read_text())
    data["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    assert "one file on some systems" in refusal(lambda: Manifest.from_json(json.dumps(data)))


def test_what_is_built_lies_where_builds_put_it(demo_bundle):
    data = json.loads((demo_bundle / MANIFEST_NAME).read_text())
    file = data["stages"]["unet"]["file"]
    data["kernels"] = [
        {"name": "a", "file": file, "compute_capability": "8.9", "source_sha256": "0" * 64, "entry_points": []}
    ]
    assert f"{file!r} as built" in refusal(lambda: Manifest.from_json(json.dumps(data)))


# -- what graphs refer to ----------------------------------------------------------------------------------------------


def relocate(bundle: Path, location: str) -> None:
    """Make a stage's graph take its weights from elsewhere, the manifest's hash with it."""
    onnx = pytest.importorskip("onnx")
    path = bundle / STAGE / f"{STAGE}.onnx"
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    rehash(bundle, f"{STAGE}/{STAGE}.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kind", ["unrecorded", "parent", "absolute", "nul", "link"])
def test_references_that_are_refused_everywhere(copy, consisti2v, verify, kind):
    weights = copy / STAGE / f"{STAGE}.onnx.data"
    outside = Path(shutil.copy(weights, copy.parent / "outside.data"))
    if kind == "link":
        weights.unlink()
        weights.symlink_to(outside)
    else:
        shutil.copy(weights, copy / STAGE / "beside.data")
        places = {"unrecorded": "beside.data", "parent": "../../outside.data", "absolute": str(outside), "nul": "a\0b"}
        relocate(copy, places[kind])
    refusal(lambda: Bundle.open(copy, verify=verify))
    consisti2v("inspect", copy, "--verify").refusal()
    # As a graph in another precision, which is looked at when it is used.
    if kind != "link":
        manifest = Manifest.from_json((copy / MANIFEST_NAME).read_text())
        graph = Bundle(copy, manifest, hashed=verify).graph(manifest.stages[STAGE])
        refusal(lambda: OnnxCpuSession(graph, manifest.stages[STAGE]))
        openvino = pytest.importorskip("consisti2v_rt.runtime.openvino.session")
        if pytest.importorskip("openvino"):
            refusal(lambda: openvino.OpenVinoSession(graph, manifest.stages[STAGE]))


def test_foreign_operators_are_refused_by_name(copy, consisti2v):
    onnx = pytest.importorskip("onnx")
    path = copy / STAGE / f"{STAGE}.onnx"
    model = onnx.load(str(path), load_external_data=False)
    model.graph.node[0].domain = "evil.domain"
    path.write_bytes(model.SerializeToString())
    rehash(copy, f"{STAGE}/{STAGE}.onnx")
    assert "'evil.domain'" in refusal(lambda: Bundle.open(copy))
    assert "'evil.domain'" in consisti2v("inspect", copy, "--verify").refusal()


# -- what was hashed is what is used -----------------------------------------------------------------------------------


def run_stage(bundle: Bundle) -> Any:
    stage = bundle.manifest.stages[STAGE]
    session = OnnxCpuSession(bundle.graph(stage), stage)
    session.inputs["text_embeddings"][...] = np.linspace(-1, 1, session.inputs["text_embeddings"].size).reshape(
        session.inputs["text_embeddings"].shape
    )
    session.run()
    return next(iter(session.outputs.values())).copy()


@pytest.mark.slow
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", [f"{STAGE}/{STAGE}.onnx.data", f"{STAGE}/{STAGE}.onnx"])
def test_a_file_put_in_place_of_another_changes_nothing(copy, demo_bundle, verify, name):
    expected, opened = run_stage(Bundle.open(demo_bundle)), Bundle.open(copy, verify=verify)
    other = copy.parent / "other"
    other.write_bytes(bytes((copy / name).stat().st_size))
    other.replace(copy / name)
    np.testing.assert_array_equal(run_stage(opened), expected)
    shutil.rmtree(copy)
    np.testing.assert_array_equal(run_stage(opened), expected)


def test_a_file_written_over_after_opening_is_refused(copy):
    opened = Bundle.open(copy)
    path = copy / STAGE / f"{STAGE}.onnx.data"
    with path.open("r+b") as file:
        file.write(b"other")
    assert f"{STAGE}.onnx.data was altered" in refusal(lambda: run_stage(opened))
    tokenizer = copy / opened.manifest.tokenizer.file
    with tokenizer.open("r+b") as file:
        file.write(b"  ")
    assert "tokenizer.json was altered" in refusal(lambda: PromptTokenizer(opened))
    os.truncate(path, 5)
    assert "has 5 bytes instead of" in refusal(lambda: run_stage(opened))


@pytest.mark.slow
def test_weights_cut_short_under_a_loaded_model_harm_nothing(copy, photo):
    """In a process of its own: a mapped file would end it by a signal."""
    program = f"""
import os, pathlib
from consisti2v_rt import ImageToVideo
animate = ImageToVideo.from_bundle({str(copy)!r}, device="cpu")
options = dict(num_inference_steps=1, seed=1, guidance_scale_txt=1.0)
first = animate({str(photo)!r}, "a", **options)
for path in pathlib.Path({str(copy)!r}).rglob("*.onnx*"):
    os.truncate(path, 0)
second = animate({str(photo)!r}, "b c", **options)
third = animate({str(photo)!r}, "a", **options)
assert (first.frames == third.frames).all()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# -- the digest --------------------------------------------------------------------------------------------------------


def test_the_digest_is_of_the_content_and_not_of_the_spelling(copy, demo_bundle, consisti2v):
    digest = Bundle.open(demo_bundle).digest
    assert len(digest) == 64 and digest in consisti2v("inspect", demo_bundle).stdout.split()
    assert json.loads(consisti2v("inspect", demo_bundle, "--json").stdout)["digest"] == digest
    data = json.loads((copy / MANIFEST_NAME).read_text())
    (copy / MANIFEST_NAME).write_text(json.dumps(dict(reversed(list(data.items()))), indent=7))
    assert Bundle.open(copy).digest == digest
    change(copy, lambda data: (data.pop("kernels", None), data["frame_init"].pop("order", None)))
    assert Bundle.open(copy).digest == digest
    change(copy, lambda data: data["model"].update(vae_scaling_factor=1.0))
    other = Bundle.open(copy).digest
    assert other != digest
    sentence = refusal(lambda: Bundle.open(copy, expect_digest=digest))
    assert digest in sentence and other in sentence
    change(copy, lambda data: data.update(digest=digest))
    assert "says that its digest is" in refusal(lambda: Bundle.open(copy))


def test_an_expected_digest(demo_bundle, photo, tmp_path, consisti2v):
    digest = Bundle.open(demo_bundle, verify=False).digest
    ImageToVideo.from_bundle(demo_bundle, device="cpu", expect_digest=digest.upper())
    arguments = ("generate", "-b", demo_bundle, "-i", photo, "-o", tmp_path / "out.gif", "--expect-digest")
    assert "is no SHA-256" in consisti2v(*arguments, "abc").refusal()
    sentence = consisti2v(*arguments, "0" * 64).refusal()
    assert "0" * 64 in sentence and digest in sentence and not (tmp_path / "out.gif").exists()


# -- sizes -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "entry", "value"),
    [
        ("model", "frames", 8),
        ("model", "height", 128),
        ("model", "width", 60),
        ("model", "width", 63),
        ("model", "vae_scale_factor", 8),
        ("model", "latent_channels", 8),
        ("model", "rows", 2),
        ("model", "dynamic_size_multiple", 8),
        ("tokenizer", "max_length", 64),
        ("scheduler", "num_train_timesteps", 100),
        ("scheduler", "num_train_timesteps", 1),
        ("scheduler", "num_train_timesteps", 10**12),
        ("frame_init", "noise_level", 1000),
        ("frame_init", "noise_level", -1),
    ],
)
def test_sizes_that_contradict_the_graphs(copy, section, entry, value):
    change(copy, lambda data: data[section].update({entry: value}))
    refusal(lambda: Bundle.open(copy, verify=False))


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "value"), [("pad_token_id", 5), ("pad_token", "<nothing>"), ("pad_token_id", -1)])
def test_a_padding_token_that_the_tokenizer_does_not_have(copy, consisti2v, entry, value):
    change(copy, lambda data: data["tokenizer"].update({entry: value}))
    assert "tokenizer.pad_token_id" in refusal(lambda: ImageToVideo.from_bundle(copy, device="cpu"))
    assert "tokenizer.pad_token_id" in consisti2v("inspect", copy, "--verify").refusal()


@pytest.mark.slow
def test_a_vocabulary_larger_than_the_text_encoder_s(copy):
    path = copy / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"].append(dict(tokenizer["added_tokens"][-1], id=10_000_000, content="<far>"))
    tokenizer["model"]["vocab"]["<far>"] = 10_000_000
    path.write_text(json.dumps(tokenizer))
    rehash(copy, "tokenizer/tokenizer.json")
    assert "token numbers up to" in refusal(lambda: ImageToVideo.from_bundle(copy, device="cpu"))


def test_tensors_that_are_missing_or_other_ones(copy):
    def rename(data: Any) -> None:
        data["stages"]["vae_decoder"]["outputs"][0]["name"] = "picture"

    change(copy, rename)
    assert "vae_decoder.onnx has other outputs" in refusal(lambda: Bundle.open(copy))


def test_a_decoder_that_takes_frames_and_gives_one(copy):
    change(copy, lambda data: data["stages"]["vae_decoder"]["inputs"][0]["shape"].__setitem__(0, "frames"))
    said = refusal(lambda: check_sizes(Manifest.from_json((copy / MANIFEST_NAME).read_text())))
    assert "image of stage vae_decoder is [1, 3, " in said and "frames, or one is frames" in said


# -- amounts -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "edit",
    [
        lambda data: data["stages"]["unet"]["inputs"][0].update(shape=[2**63] * 100_000),
        lambda data: data["stages"]["unet"]["outputs"][0].update(shape=[1] * 100_000),
        lambda data: data["recommended"].update(guidance_interval=[0.1] * 100_000),
        lambda data: data["scheduler"].update(beta_schedule="x" * 1_000_000),
        lambda data: data["scheduler"].update({"x" * 1_000_000: 1}),
        lambda data: data.update({"x" * 1_000_000: 1}),
        lambda data: data.update(schema_version="x" * 1_000_000),
        lambda data: data["model"].update(text_attention="x" * 1_000_000),
        lambda data: data["model"].update(guidance="x" * 1_000_000),
        lambda data: data["frame_init"].update(filter="x" * 1_000_000),
        lambda data: data["model"].update(vae_scaling_factor=1e300),
        lambda data: data["model"].update(vae_scaling_factor=1e-300),
    ],
)
def test_huge_entries_end_in_a_short_sentence_at_once(copy, edit):
    change(copy, edit)
    with pytest.raises(UserError) as caught:
        Bundle.open(copy, verify=False)
    assert len(str(caught.value)) <= 2000 and str(caught.value).endswith(".")
