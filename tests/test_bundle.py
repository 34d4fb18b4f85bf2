"""The bundle's manifest: read, written and refused; the files it records: hashed and checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt import GenerationSettings, UserError
from consisti2v_rt.runtime.bundle import bundle as bundle_module
from consisti2v_rt.runtime.bundle.bundle import Bundle, hash_files
from consisti2v_rt.runtime.bundle.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    STAGES,
    EngineSpec,
    FileRecord,
    FrameInitDefaults,
    Manifest,
    ModelSpec,
    Provenance,
    StageSpec,
    TensorSpec,
    TokenizerSpec,
    check_inner_path,
)

HASH = "0" * 64


def small_manifest() -> Manifest:
    """Every kind of entry once, an engine and a dynamic size included."""
    tensor = TensorSpec("sample", "float32", ("rows", 4, 15, "latent_height", "latent_width"))
    stages = {name: StageSpec(f"{name}/{name}.onnx", "fp32", (tensor,), (tensor,), 23) for name in STAGES}
    engine = EngineSpec("unet", "engines/sm89/unet.engine", "sm89", "rtx", "1.2", "fp16", ("8.9",), HASH)
    files = [stage.file for stage in stages.values()] + ["tokenizer/tokenizer.json", engine.file]
    return Manifest(
        name="small",
        model=ModelSpec(16, 256, 384, 4, 8, 0.18215, None, "text", 64, True, False, {"n_frames": 16, "widths": [32]}),
        tokenizer=TokenizerSpec("tokenizer/tokenizer.json", 77, 0, "!"),
        scheduler={"num_train_timesteps": 1000, "prediction_type": "epsilon", "set_alpha_to_one": True},
        frame_init=FrameInitDefaults(),
        stages=stages,
        provenance=Provenance("somewhere", "main", "Apache-2.0", {"torch": "2.13.0"}),
        files={name: FileRecord(HASH, 10) for name in files},
        engines=(engine,),
    )


def entries() -> dict[str, Any]:
    """The small manifest as JSON gives it back."""
    data: dict[str, Any] = json.loads(small_manifest().to_json())
    return data


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    return str(caught.value)


def read(data: object) -> Manifest:
    return Manifest.from_json(data if isinstance(data, str) else json.dumps(data))


def test_round_trip():
    manifest = small_manifest()
    again = Manifest.from_json(manifest.to_json())
    assert again == manifest
    assert again.to_json() == manifest.to_json()
    assert isinstance(again.stages["unet"].inputs[0].shape, tuple) and again.model.rows is None


def test_demo_bundle_round_trip(demo_bundle):
    text = (demo_bundle / MANIFEST_NAME).read_text(encoding="utf-8")
    manifest = Manifest.from_json(text)
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_what_may_be_left_out():
    data = entries()
    del data["engines"], data["frame_init"]["order"]
    manifest = read(data)
    assert manifest.engines == () and manifest.frame_init.order == 4


def test_a_whole_number_is_a_float_too():
    data = entries()
    data["frame_init"]["d_s"] = 1
    assert read(data).frame_init.d_s == 1.0 and isinstance(read(data).frame_init.d_s, float)


@pytest.mark.parametrize("text", ["", "{", "{'name': 1}", '{"name": }', "[" * 100_000, "\x00"])
def test_not_json(text):
    assert "not valid JSON" in refusal(lambda: read(text))


@pytest.mark.parametrize("text", ["[]", "1", '"text"', "null"])
def test_not_an_object(text):
    assert "does not hold a JSON object" in refusal(lambda: read(text))


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", None, [1]])
def test_schema_version(version):
    assert f"schema version {version!r}" in refusal(lambda: read(entries() | {"schema_version": version}))
    data = entries()
    del data["schema_version"]
    assert "schema version None" in refusal(lambda: read(data))


def every_entry(kind: type = Manifest, where: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every entry that has no default, of the dataclasses that the manifest holds directly."""
    inner = {"model": ModelSpec, "tokenizer": TokenizerSpec, "provenance": Provenance}
    paths = []
    for entry in dataclasses.fields(kind):
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            paths.append((*where, entry.name))
        if not where and entry.name in inner:
            paths += every_entry(inner[entry.name], (entry.name,))
    return paths


@pytest.mark.parametrize("path", every_entry(), ids=".".join)
def test_every_entry_is_needed_and_of_its_kind(path):
    *above, last = path
    for change, says in ((lambda holder: holder.pop(last), "is missing"), (lambda h: h.update({last: {1: 2}}), "")):
        data = entries()
        holder = data
        for name in above:
            holder = holder[name]
        change(holder)
        if last in ("scheduler", "unet_config") and not says:  # anything may stand in these two
            continue
        message = refusal(lambda data=data: read(data))
        assert says in message and ".".join(path) in message


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("colour",), 1, "entry colour is unknown"),
        (("model", "colour"), 1, "entry model.colour is unknown"),
        (("stages", "unet", "inputs", 0, "colour"), 1, "entry stages.unet.inputs[0].colour is unknown"),
        (("stages", "unet", "opset"), "23", "entry stages.unet.opset has the wrong kind"),
        (("stages", "unet", "inputs", 0, "shape", 1), 1.5, "entry stages.unet.inputs[0].shape[1]"),
        (("stages", "unet", "inputs", 0, "shape", 1), 0, "cannot be 0"),
        (("stages", "unet", "inputs"), {}, "entry stages.unet.inputs"),
        (("stages", "unet", "inputs", 0, "dtype"), "complex64", "complex64"),
        (("model", "frames"), True, "entry model.frames"),
        (("model", "frames"), 16.0, "entry model.frames"),
        (("model", "frames"), None, "entry model.frames"),
        (("model", "rows"), 0, "entry model.rows cannot be 0"),
        (("model", "dynamic_size_multiple"), -8, "entry model.dynamic_size_multiple cannot be -8"),
        (("model", "trained"), 1, "entry model.trained"),
        (("model", "vae_scaling_factor"), float("inf"), "Infinity is no number"),
        (("model", "vae_scaling_factor"), 0.0, "entry model.vae_scaling_factor cannot be 0"),
        (("tokenizer",), None, "entry tokenizer must be an object"),
        (("tokenizer", "max_length"), 0, "entry tokenizer.max_length cannot be 0"),
        (("provenance", "tools", "torch"), 2, "entry provenance.tools.torch"),
        (("provenance", "tools"), "torch 2.13", "entry provenance.tools"),
        (("scheduler",), "ddim", "entry scheduler"),
        (("files", "tokenizer/tokenizer.json", "bytes"), "10", "entry files.tokenizer/tokenizer.json.bytes"),
        (("engines", 0, "compute_capabilities"), "8.9", "entry engines[0].compute_capabilities"),
    ],
)
def test_wrong_entries(path, value, says):
    data = entries()
    holder: Any = data
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    assert says in refusal(lambda: read(data))


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_needed(stage):
    data = entries()
    del data["stages"][stage]
    assert f"no stage {stage}" in refusal(lambda: read(data))


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "unet/unet.onnx", "engines/sm89/unet.engine"])
def test_every_file_needs_a_hash(name):
    data = entries()
    del data["files"][name]
    assert f"{name!r} without a hash" in refusal(lambda: read(data))


OUTSIDE = [
    "../model.onnx",
    "unet/../../model.onnx",
    "unet/..",
    "/etc/passwd",
    "//server/share",
    "C:\\model.onnx",
    "C:/model.onnx",
    "C:model.onnx",
    "unet\\model.onnx",
    "..\\model.onnx",
    "model.onnx:stream",
    "",
    ".",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_outside_the_bundle(path):
    assert "outside the bundle" in refusal(lambda: check_inner_path(path))
    for rename in (
        lambda data: data["stages"]["unet"].update(file=path),
        lambda data: data["tokenizer"].update(file=path),
        lambda data: data["engines"][0].update(file=path),
        lambda data: data["files"].update({path: {"sha256": HASH, "bytes": 1}}),
    ):
        data = entries()
        rename(data)
        assert "outside the bundle" in refusal(lambda data=data: read(data))


@pytest.mark.parametrize(
    "path", ["model.onnx", "unet/model.onnx.data", "a/b/c", "caf\u00e9/\u732b.json", "..a/b..", "a b"]
)
def test_paths_inside_the_bundle(path):
    check_inner_path(path)


# -- the files ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path, demo_bundle) -> Path:
    return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))


def test_open_and_verify(copy):
    bundle = Bundle.open(copy)
    bundle.verify()
    recorded = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()} - {MANIFEST_NAME}
    assert set(bundle.manifest.files) == recorded
    assert bundle.file("unet/unet.onnx") == copy / "unet" / "unet.onnx"


def test_an_altered_file_of_the_same_size(copy):
    path = copy / "vae_decoder" / "vae_decoder.onnx.data"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x80
    path.write_bytes(data)
    unchecked = Bundle.open(copy, verify=False)
    assert "vae_decoder.onnx.data was altered" in refusal(unchecked.verify)
    assert "vae_decoder.onnx.data was altered" in refusal(lambda: Bundle.open(copy))


@pytest.mark.parametrize("verify", [True, False])
def test_missing_cut_and_grown_files(copy, verify):
    path = copy / "unet" / "unet.onnx"
    content = path.read_bytes()
    for size in (0, len(content) - 1, len(content) + 1):
        path.write_bytes((content + b"x")[:size])
        message = refusal(lambda: Bundle.open(copy, verify=verify))
        assert f"unet/unet.onnx has {size} bytes instead of {len(content)}" in message
    path.unlink()
    assert "lacks unet/unet.onnx" in refusal(lambda: Bundle.open(copy, verify=verify))
    path.mkdir()
    assert "lacks unet/unet.onnx" in refusal(lambda: Bundle.open(copy, verify=verify))


@pytest.mark.parametrize("verify", [True, False])
def test_links(copy, tmp_path, verify):
    """A recorded file that is a link, or lies behind one, is refused; the bundle's folder may be one."""
    path, elsewhere = copy / "unet" / "unet.onnx", tmp_path / "elsewhere.onnx"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    assert "link to outside" in refusal(lambda: Bundle.open(copy, verify=verify))
    path.unlink()
    elsewhere.rename(copy / "kept.onnx")
    path.symlink_to(copy / "kept.onnx")
    assert "unet/unet.onnx is a link: replace it" in refusal(lambda: Bundle.open(copy, verify=verify))
    path.unlink()
    (copy / "kept.onnx").rename(path)
    (copy / "unet").rename(copy / "kept")
    (copy / "unet").symlink_to(copy / "kept")
    assert "unet/unet.onnx is a link" in refusal(lambda: Bundle.open(copy, verify=verify))
    (copy / "unet").unlink()
    (copy / "kept").rename(copy / "unet")
    (tmp_path / "link").symlink_to(copy)
    Bundle.open(tmp_path / "link", verify=verify)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("verify", [True, False])
def test_a_pipe_is_refused_and_not_waited_for(copy, verify):
    (copy / "unet" / "unet.onnx").unlink()
    os.mkfifo(copy / "unet" / "unet.onnx")
    assert "unet/unet.onnx is no regular file" in refusal(lambda: Bundle.open(copy, verify=verify))


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may read everything")
def test_an_unreadable_file_is_told(copy):
    (copy / "unet" / "unet.onnx").chmod(0)
    assert "unet.onnx cannot be read (Permission denied)" in refusal(lambda: Bundle.open(copy))


@pytest.mark.parametrize("verify", [True, False])
def test_what_was_built_is_checked_when_it_is_used(copy, verify):
    """Lost or damaged it hinders nothing but its own use; a link out of the bundle is refused in any case."""
    name = "engines/sm89/unet.plan"
    path = copy / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"a plan")
    data = json.loads((copy / MANIFEST_NAME).read_text())
    data["files"][name] = dataclasses.asdict(hash_files(copy, [name])[name])
    (copy / MANIFEST_NAME).write_text(json.dumps(data))
    assert Bundle.open(copy, verify=verify).require([name, "engines/not recorded"], "COMMAND") is None
    path.write_bytes(b"a plot")
    if verify:
        message = refusal(lambda: Bundle.open(copy).require([name], "COMMAND"))
        assert message.endswith(f"{name} was altered (its SHA-256 differs): make it again with 'COMMAND'.")
    else:
        Bundle.open(copy, verify=False).require([name], "COMMAND")
    path.write_bytes(b"half")
    opened = Bundle.open(copy, verify=verify)
    assert "has 4 bytes instead of 6" in refusal(lambda: opened.require([name], "COMMAND"))
    assert opened.lost_files() == {name: "has 4 bytes instead of 6"}
    path.unlink()
    assert f"{name} is missing: make it again with 'consisti2v build'" in refusal(Bundle.open(copy).verify)
    path.symlink_to(__file__)
    assert "link to outside" in refusal(lambda: Bundle.open(copy, verify=verify))


def test_verify_names_every_file(copy):
    unchecked = Bundle.open(copy, verify=False)
    (copy / "unet" / "unet.onnx").unlink()
    path = copy / "vae_decoder" / "vae_decoder.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    message = refusal(unchecked.verify)
    assert "unet/unet.onnx is missing" in message and "vae_decoder.onnx was altered (its SHA-256 differs)" in message
    assert message.endswith("copy it again, or export again.")


def test_hash_files(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle_module, "_CHUNK", 1000)
    contents = {"empty": b"", "small": b"abc", "a/b/large": bytes(range(256)) * 100, "exact": b"x" * 1000}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    records = hash_files(tmp_path, contents)
    assert list(records) == list(contents)
    for name, content in contents.items():
        assert records[name] == FileRecord(hashlib.sha256(content).hexdigest(), len(content))
    assert hash_files(tmp_path, []) == {}
    with pytest.raises(FileNotFoundError):
        hash_files(tmp_path, ["missing"])


def test_settings_of_a_bundle_of_any_size():
    """Sizes and motions that the demo bundle cannot show: a dynamic one, and one that is not square."""
    manifest = small_manifest()
    settings = GenerationSettings(height=320).resolved(manifest)
    assert (settings.height, settings.width, settings.video_length) == (320, 384, 16)
    assert "multiples of 64" in refusal(lambda: GenerationSettings(height=328).resolved(manifest))
    assert "not a multiple of 8" in refusal(lambda: GenerationSettings(height=100).resolved(manifest))
    wide = GenerationSettings(camera_motion="zoom_in").resolved(manifest)
    assert (wide.height, wide.width) == (256, 384)
