"""Everything a user can get wrong: one sentence, exit code 2, nothing run, nothing left behind.

One table for the whole command line. In an argument ``{bad}`` stands for the folder of bad input, ``{bundle}`` for a
bundle (a copy that the row may spoil), ``{photo}`` for a good photo, ``{out}`` for the empty folder that must stay so.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer

from consisti2v_rt import cli
from consisti2v_rt.runtime import text
from consisti2v_rt.runtime.session import OnnxCpuSession

pytestmark = pytest.mark.slow

DEMO_MODEL = Path(cli.__file__).parent / "models" / "demo"
MANIFEST = "bundle.json"
UNET = "unet/unet.onnx"


@dataclass(frozen=True)
class Row:
    """One mistake: what is typed, what the sentence must say, and what is done to the bundle before."""

    name: str
    says: str
    arguments: list[str]
    spoil: Callable[[Path], None] | None = None
    late: bool = False
    """Found when a later stage is loaded, after an earlier one has run."""


# -- the command lines -------------------------------------------------------------------------------------------------


def generate(*options: str) -> list[str]:
    """``generate`` with good options, of which `options` replaces those it names and adds the rest."""
    good = {
        "--bundle": "{bundle}",
        "--image": "{photo}",
        "--prompt": "a cat",
        "--output": "{out}/out.mp4",
        "--steps": "1",
    }
    kept = [part for name, value in good.items() if name not in options for part in (name, value)]
    return ["generate", *kept, *options]


def export(*arguments: str, output: str = "{out}/bundle") -> list[str]:
    return ["export", *arguments, "--output", output]


# -- spoiling a bundle -------------------------------------------------------------------------------------------------


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Change the manifest as JSON."""

    def spoil(bundle: Path) -> None:
        manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
        change(manifest)
        (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")

    return spoil


def manifest_text(text: str | bytes) -> Callable[[Path], None]:
    return lambda bundle: (bundle / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode()) and None


def set_entry(*path: str | int, to: Any) -> Callable[[Path], None]:
    """Give the manifest's entry at `path` another value."""

    def change(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        manifest[path[-1]] = to

    return edit(change)


def replace_by_pipe(name: str) -> Callable[[Path], None]:
    def spoil(bundle: Path) -> None:
        (bundle / name).unlink()
        os.mkfifo(bundle / name)

    return spoil


def drop_entry(*path: str) -> Callable[[Path], None]:
    def change(manifest: Any) -> None:
        for key in path[:-1]:
            manifest = manifest[key]
        del manifest[path[-1]]

    return edit(change)


def cut_file(bundle: Path) -> None:
    with (bundle / f"{UNET}.data").open("r+b") as file:
        file.truncate(1000)


def alter_file(bundle: Path) -> None:
    """One bit, in the middle; the size stays."""
    path = bundle / f"{UNET}.data"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_file(name: str, content: bytes) -> Callable[[Path], None]:
    """Another content, with the manifest saying that it is right."""

    def spoil(bundle: Path) -> None:
        (bundle / name).write_bytes(content)
        record = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        set_entry("files", name, to=record)(bundle)

    return spoil


def link_outside(bundle: Path) -> None:
    outside = bundle.parent / "outside.data"
    (bundle / f"{UNET}.data").rename(outside)
    (bundle / f"{UNET}.data").symlink_to(outside)


def rename_recorded(new: str) -> Callable[[Path], None]:
    """The tokenizer's path, consistently another one."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][new] = manifest["files"].pop(manifest["tokenizer"]["file"])
        manifest["tokenizer"]["file"] = new

    return edit(change)


def another_size(manifest: dict[str, Any]) -> None:
    """The manifest of a model with one frame more than its graphs have."""
    manifest["model"]["frames"] += 1
    for spec in manifest["stages"]["unet"]["inputs"] + manifest["stages"]["unet"]["outputs"]:
        if spec["name"] in ("sample", "noise_pred"):
            spec["shape"][2] += 1


# -- the table ---------------------------------------------------------------------------------------------------------

IMAGES = [
    Row("not an image", "not an image", generate("--image", "{bad}/text.jpg")),
    Row("empty image file", "not an image", generate("--image", "{bad}/empty.png")),
    Row("truncated image", "damaged", generate("--image", "{bad}/truncated.jpg")),
    Row("1x1 image", "at least 16", generate("--image", "{bad}/dot.png")),
    Row("huge image", "110 megapixels", generate("--image", "{bad}/huge.ppm")),
    Row("missing image", "does not exist", generate("--image", "{bad}/none.jpg")),
    Row("folder as image", "is a folder", generate("--image", "{bad}")),
    Row("image name too long", "cannot be read", generate("--image", "x" * 5000)),
    Row("second image bad", "not an image", generate("--image", "{photo}", "--image", "{bad}/text.jpg")),
    Row("line end in the name", "does not exist", generate("--image", "{bad}/two\nlines.jpg")),
    Row("markup in the name", r"a\[red]b[/blue].jpg", generate("--image", r"{bad}/a\[red]b[/blue].jpg")),
    Row("demo with a bad image", "not an image", ["demo", "--image", "{bad}/text.jpg", "--output", "{out}/out.mp4"]),
]

OUTPUTS = [
    Row("unknown suffix", ".mp4, .gif, .webp, .png", generate("--output", "{out}/out.avi")),
    Row("no suffix", ".mp4, .gif, .webp, .png", generate("--output", "{out}/out")),
    Row("missing parent", "does not exist", generate("--output", "{out}/none/out.mp4")),
    Row("file as parent", "does not exist", generate("--output", "{bad}/text.jpg/out.mp4")),
    Row("folder in place", "is a folder", generate("--output", "{bad}/folder.mp4")),
    Row("name too long", "cannot be written", generate("--output", "{out}/" + "x" * 300 + ".mp4")),
    Row(
        "folder in place of the second video",
        "numbered-1.mp4",
        generate("--output", "{bad}/numbered.mp4", "--videos-per-prompt", "2"),
    ),
    Row("demo, folder in place of the GIF", "is a folder", ["demo", "--output", "{bad}/folder-gif.mp4"]),
]

# Option, bad value, what the sentence says.
VALUES = [
    ("--height", "99", "multiple of 4"),
    ("--width", "99", "multiple of 4"),
    ("--height", "8", "export again with --height 8"),
    ("--width", "4096", "export again with --width 4096"),
    ("--height", "0", "height 0"),
    ("--width", "-128", "width -128"),
    ("--height", "80000", "8192"),
    ("--frames", "8", "clips of"),
    ("--frames", "0", "clips of"),
    ("--frames", "1000000", "clips of"),
    ("--steps", "0", "from 1 to 1000"),
    ("--steps", "-1", "from 1 to 1000"),
    ("--steps", "2000", "from 1 to 1000"),
    ("--steps", "1000", "fewer steps"),
    *(
        (option, value, "give a number from")
        for option in (
            "--guidance-scale",
            "--image-guidance-scale",
            "--guidance-rescale",
            "--eta",
            "--noise-alpha",
            "--frameinit-d-s",
            "--frameinit-d-t",
            "--fps",
        )
        for value in ("nan", "inf", "-inf", "1e30")
    ),
    ("--guidance-rescale", "1.01", "from 0 to 1"),
    ("--eta", "-0.5", "from 0 to 1"),
    ("--scheduler", "heun", "ddim, dpmpp_2m"),
    ("--preset", "quick", "exact, balanced, fast"),
    ("--guidance-interval", "0.5", "START:END"),
    ("--guidance-interval", "a:b", "START:END"),
    ("--guidance-interval", "0.8:0.2", "is empty"),
    ("--guidance-interval", "0:nan", "from 0 to 1"),
    ("--guidance-interval", "-1:1", "from 0 to 1"),
    ("--guidance-batch", "half", "joint, split"),
    ("--noise-alpha", "-1", "from 0 to"),
    ("--frameinit-d-s", "-0.1", "from 0 to 1"),
    ("--frameinit-d-t", "1.5", "from 0 to 1"),
    ("--fps", "0", "give a number from"),
    ("--fps", "-8", "give a number from"),
    ("--frame-stride", "0", "from 1 to"),
    ("--frame-stride", "-3", "from 1 to"),
    ("--frame-stride", "100000", "from 1 to"),
    ("--frameinit-noise-level", "-1", "from 0 to 999"),
    ("--frameinit-noise-level", "1000", "from 0 to 999"),
    ("--frameinit-order", "0", "from 1 to"),
    ("--frameinit-filter", "median", "gaussian, butterworth, ideal, box"),
    ("--noise", "white", "pyoco_mixed"),
    ("--camera-motion", "tilt", "pan_left"),
    ("--videos-per-prompt", "0", "from 1 to"),
    ("--clips", "0", "from 1 to"),
    ("--threads", "0", "from 1 to"),
    ("--threads", "-2", "from 1 to"),
    ("--seed", str(2**64), "out of range"),
    ("--seed", str(-(2**63) - 1), "out of range"),
]

COMBINATIONS = [
    *(Row(f"{option} {value}", says, generate(option, value)) for option, value, says in VALUES),
    Row("eta for another scheduler", "belongs to the ddim", generate("--eta", "0.5", "--scheduler", "unipc")),
    Row("too many steps for lcm", "from 1 to 50", generate("--scheduler", "lcm", "--steps", "51")),
    Row("no step in the interval", "holds none of the 1 steps", generate("--guidance-interval", "0.1:0.2")),
    Row("two seeds for one video", "2 seeds for 1 videos", generate("--seed", "1", "--seed", "2")),
    Row(
        "two images for three prompts",
        "2 images for 3 prompts",
        generate("--image", "{photo}", "--image", "{photo}", "--prompt", "a", "--prompt", "b", "--prompt", "c"),
    ),
    Row(
        "two negative prompts for one prompt",
        "2 negative prompts for 1 prompts",
        generate("--negative-prompt", "a", "--negative-prompt", "b"),
    ),
    Row(
        "camera motion without FrameInit",
        "leave --frameinit on",
        generate("--camera-motion", "zoom_in", "--no-frameinit"),
    ),
    Row("camera motion in a long video", "one clip", generate("--camera-motion", "zoom_in", "--clips", "2")),
    Row("prompt that is no text", "prompt", generate("--prompt", "half a \udcf0 character")),
    *(
        Row(
            f"{option} on {device}",
            f"{option} needs a GPU, which device {device} is not",
            generate("--device", device, option),
        )
        for device in ("cpu", "openvino")
        for option in ("--low-vram", "--device-noise", "--no-cuda-graph")
    ),
    Row("demo with 0 steps", "from 1 to 1000", ["demo", "--steps", "0", "--output", "{out}/out.mp4"]),
]

DOCTOR = [
    Row("doctor: unknown device", "device 'foo' is unknown: choose auto, cpu", ["doctor", "--device", "foo"]),
    Row("doctor: missing bundle", "does not exist", ["doctor", "--bundle", "{out}/none"]),
]

BUNDLES = [
    Row("missing bundle", "does not exist", generate("--bundle", "{out}/none")),
    Row("folder that is no bundle", "is not a bundle", generate("--bundle", "{bad}")),
    Row("file as bundle", "is not a bundle", generate("--bundle", "{photo}")),
    Row("bundle name too long", "File name too long", generate("--bundle", "x" * 5000)),
    Row("missing file", f"lacks {UNET}", generate(), lambda bundle: (bundle / UNET).unlink()),
    Row("truncated file", "has 1000 bytes", generate(), cut_file),
    Row("altered file", "SHA-256", generate(), alter_file),
    Row("inspect --verify of an altered file", "SHA-256", ["inspect", "{bundle}", "--verify"], alter_file),
    Row("inspect a folder that is no bundle", "is not a bundle", ["inspect", "{bad}"]),
    Row("inspect a missing bundle", "does not exist", ["inspect", "{out}/none"]),
    Row("inspect a missing file", f"lacks {UNET}", ["inspect", "{bundle}"], lambda bundle: (bundle / UNET).unlink()),
    Row("manifest that is not JSON", "not valid JSON", generate(), manifest_text("{'name': 1}")),
    Row("manifest cut short", "not valid JSON", generate(), manifest_text('{"name": "demo", "model": {')),
    Row("manifest nested without end", "not valid JSON", generate(), manifest_text("[" * 200_000)),
    Row("manifest that is not text", "is UTF-16 text", generate(), manifest_text(b"\xff\xfe\x00\x80")),
    Row("manifest with an entry twice", "'name' is there twice", generate(), manifest_text('{"name": 1, "name": 2}')),
    Row("manifest with a number that does not fit", "does not fit", generate(), manifest_text('{"name": 1e999}')),
    Row("manifest with half a character", "surrogate", generate(), manifest_text('{"name": "\\ud800"}')),
    Row("manifest that is a pipe", "is a pipe", generate(), replace_by_pipe("bundle.json")),
    Row("tokenizer that is a pipe", "tokenizer.json", generate(), replace_by_pipe("tokenizer/tokenizer.json")),
    Row("manifest that is a list", "JSON object", generate(), manifest_text("[]")),
    Row(
        "manifest with NaN",
        "NaN is no number",
        generate(),
        set_entry("model", "vae_scaling_factor", to=math.nan),
    ),
    Row("manifest with ../", "outside the bundle", generate(), rename_recorded("tokenizer/../../tokenizer.json")),
    Row("manifest with an absolute path", "outside the bundle", generate(), rename_recorded("/etc/passwd")),
    Row("manifest with a Windows path", "outside the bundle", generate(), rename_recorded("C:\\tokenizer.json")),
    Row("manifest with a Windows drive", "outside the bundle", generate(), rename_recorded("C:tokenizer.json")),
    Row("manifest with an empty path", "outside the bundle", generate(), rename_recorded("")),
    Row("link out of the bundle", "link to outside", generate(), link_outside),
    Row("unknown schema version", "schema version 2", generate(), set_entry("schema_version", to=2)),
    Row("no schema version", "schema version None", generate(), drop_entry("schema_version")),
    Row("missing stage", "no stage unet", generate(), drop_entry("stages", "unet")),
    Row("missing entry", "model.frames is missing", generate(), drop_entry("model", "frames")),
    Row("unknown entry", "model.colour is unknown", generate(), set_entry("model", "colour", to="red")),
    Row("entry of the wrong kind", "model.frames", generate(), set_entry("model", "frames", to="16")),
    Row("yes for a number", "model.frames", generate(), set_entry("model", "frames", to=True)),
    Row("list for an object", "stages.unet must be an object", generate(), set_entry("stages", "unet", to=[])),
    Row("unknown dtype", "float8", generate(), set_entry("stages", "unet", "inputs", 0, "dtype", to="float8")),
    Row("no frames", "model.frames", generate(), set_entry("model", "frames", to=0)),
    Row("negative size", "model.height", generate(), set_entry("model", "height", to=-128)),
    Row("file without a hash", "without a hash", generate(), drop_entry("files", UNET)),
    Row("negative bytes", "bytes instead of -1", generate(), set_entry("files", UNET, "bytes", to=-1)),
    Row("unknown scheduler option", "karras", generate(), set_entry("scheduler", "use_karras_sigmas", to=True)),
    Row("scheduler value of the wrong kind", "scheduler", generate(), set_entry("scheduler", "beta_start", to="small")),
    Row("unknown default filter", "median", generate(), set_entry("frame_init", "filter", to="median")),
    Row("tokenizer that is none", "no tokenizer", generate(), replace_file("tokenizer/tokenizer.json", b"{}")),
    Row("tokenizer without length", "tokenizer.max_length", generate(), set_entry("tokenizer", "max_length", to=0)),
    Row(
        "graph that cannot be loaded",
        "cannot load unet.onnx",
        generate(),
        replace_file(UNET, b"not a graph"),
        late=True,
    ),
    Row(
        "first graph that cannot be loaded",
        "cannot load vae_encoder.onnx",
        generate(),
        replace_file("vae_encoder/vae_encoder.onnx", b"not a graph"),
    ),
    Row("manifest of another model", "other inputs", generate(), edit(another_size), late=True),
    Row(
        "stage without an input",
        "other inputs",
        generate(),
        set_entry("stages", "text_encoder", "inputs", to=[]),
        late=True,
    ),
]

EXPORTS = [
    Row("export: neither MODEL nor --random-weights", "not both and not neither", export()),
    Row(
        "export: both MODEL and --random-weights",
        "not both and not neither",
        export("{bad}", "--random-weights", "tiny"),
    ),
    Row(
        "export: --random-weights with a checkpoint",
        "--unet-checkpoint",
        export("--random-weights", "tiny", "--unet-checkpoint", "{bad}/evil.bin"),
    ),
    Row("export: unknown guidance", "none, text, both", export("--random-weights", "tiny", "--guidance", "image")),
    Row("export: unknown precision", "fp32", export("--random-weights", "tiny", "--precision", "fp64")),
    Row(
        "export: output that is no bundle",
        "not a bundle",
        export("--random-weights", "tiny", output="{bad}/folder.mp4"),
    ),
    Row("export: output that is a file", "not a bundle", export("--random-weights", "tiny", output="{bad}/text.jpg")),
    Row("export: output that is here", "not a bundle", export("--random-weights", "tiny", output=".")),
    Row("export: missing parent", "make it first", export("--random-weights", "tiny", output="{out}/none/bundle")),
    Row("export: file as parent", "make it first", export("--random-weights", "tiny", output="{bad}/text.jpg/bundle")),
    Row("export: name too long", "cannot be written", export("--random-weights", "tiny", output="{out}/" + "x" * 5000)),
    Row("export: height not a multiple", "multiples of 8", export("--random-weights", "tiny", "--height", "100")),
    Row(
        "export: width not a multiple",
        "multiples of 16",
        export("--random-weights", "tiny", "--width", "72", "--dynamic"),
    ),
    Row("export: height 0", "height 0", export("--random-weights", "tiny", "--height", "0")),
    Row("export: width too large", "8192", export("--random-weights", "tiny", "--width", "80000")),
    Row("export: frames of another model", "clips of 16", export("--random-weights", "tiny", "--frames", "8")),
    Row("export: seed out of range", "seed", export("--random-weights", "tiny", "--seed", str(2**70))),
    Row("export: unknown random weights", "'full' nor 'tiny'", export("--random-weights", "small")),
    Row("export: config that is not JSON", "not valid JSON", export("--random-weights", "{bad}/broken.json")),
    Row("export: config that is not text", "not valid JSON", export("--random-weights", "{bad}/dot.png")),
    Row("export: config that is a list", "JSON object", export("--random-weights", "{bad}/list.json")),
    Row("export: config with an unknown option", "colour", export("--random-weights", "{bad}/unknown.json")),
    Row("export: neither a folder nor a hub id", "neither a folder nor a hub id", export("no such model")),
    Row("export: model name too long", "neither a folder nor a hub id", export("x" * 5000)),
    Row("export: file as model", "neither a folder nor a hub id", export("{photo}")),
    Row("export: folder without a VAE", "lacks the folder vae/", export("{bad}/no_vae")),
    Row("export: folder without weights", "holds no weights", export("{bad}/no_weights")),
    Row("export: weights outside the folder", "does not name the weight files", export("{bad}/bad_index")),
    Row(
        "export: missing checkpoint",
        "does not exist",
        export("{bad}/no_weights", "--unet-checkpoint", "{bad}/none.bin"),
    ),
    Row(
        "export: checkpoint that is no checkpoint",
        "cannot be read as weights",
        export("{bad}/no_weights", "--unet-checkpoint", "{bad}/text.safetensors"),
    ),
    Row(
        "export: pickle that holds more than tensors",
        "nothing but tensors",
        export("{bad}/no_weights", "--unet-checkpoint", "{bad}/evil.bin"),
    ),
    Row(
        "export: torch file that holds more than tensors",
        "nothing but tensors",
        export("{bad}/no_weights", "--unet-checkpoint", "{bad}/evil.pt"),
    ),
    Row("export: VAE that cannot be read", "cannot be read", export("{bad}/no_parts")),
]

TABLE = IMAGES + OUTPUTS + COMBINATIONS + DOCTOR + BUNDLES + EXPORTS
ALSO_AS_PROCESS = {
    "truncated image",
    "markup in the name",
    "--eta nan",
    "prompt that is no text",
    "altered file",
    "graph that cannot be loaded",
}


class Evil:
    """Unpickled by a careless loader, this makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, photo: Path) -> Path:
    """Bad input of every kind."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.jpg").write_text("not an image")
    (folder / "text.safetensors").write_text("not weights")
    (folder / "empty.png").write_bytes(b"")
    (folder / "truncated.jpg").write_bytes(photo.read_bytes()[:5000])
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    (folder / "huge.ppm").write_bytes(b"P6 40000 40000 255\n")
    for name in ("folder.mp4", "numbered-1.mp4", "folder-gif.gif"):
        (folder / name).mkdir()
    (folder / "broken.json").write_text('{"layers_per_block": ')
    (folder / "list.json").write_text("[1, 2]")
    (folder / "unknown.json").write_text('{"colour": "red"}')
    for model, parts in {
        "no_vae": ["unet", "text_encoder", "tokenizer"],
        "no_weights": ["unet", "vae", "text_encoder", "tokenizer"],
        "no_parts": ["unet", "vae", "text_encoder", "tokenizer"],
    }.items():
        for part in parts:
            if part != "unet":
                shutil.copytree(DEMO_MODEL / part, folder / model / part)
        (folder / model / "unet").mkdir()
        shutil.copy(DEMO_MODEL / "unet" / "config.json", folder / model / "unet")
    (folder / "evil.bin").write_bytes(pickle.dumps({"weight": Evil(folder / "owned")}))
    torch = pytest.importorskip("torch")
    shutil.copytree(folder / "no_weights", folder / "bad_index")
    index = folder / "bad_index" / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {"conv_in.weight": "../../text.safetensors"}}')
    shutil.copy(DEMO_MODEL / "unet" / "diffusion_pytorch_model.safetensors", folder / "no_parts" / "unet")
    with (folder / "no_parts" / "vae" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.truncate(1_000_000)
    torch.save({"weight": Evil(folder / "owned")}, folder / "evil.pt")
    return folder


@pytest.fixture
def places(tmp_path, bad, demo_bundle, photo, request) -> dict[str, Path]:
    """What the placeholders of a row stand for; the row's bundle is a spoiled copy, or the real one."""
    row: Row = request.param
    out = tmp_path / "out"
    out.mkdir()
    bundle = demo_bundle
    if row.spoil is not None:
        bundle = tmp_path / "spoiled" / "bundle"
        shutil.copytree(demo_bundle, bundle)
        row.spoil(bundle)
    return {"bad": bad, "bundle": bundle, "photo": photo, "out": out}


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer() -> Iterator[None]:
    """Reading its 50,000 words takes longer than anything else in a row; good ones are kept."""

    class Kept:
        @staticmethod
        @functools.cache
        def from_buffer(content: bytes) -> Tokenizer:
            return Tokenizer.from_buffer(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "Tokenizer", Kept)
        yield


def filled(arguments: list[str], places: dict[str, Path]) -> list[str]:
    for name, path in places.items():
        arguments = [argument.replace(f"{{{name}}}", str(path)) for argument in arguments]
    return arguments


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "places" in metafunc.fixturenames:
        rows = TABLE if metafunc.function is test_refused else [row for row in TABLE if row.name in ALSO_AS_PROCESS]
        metafunc.parametrize(
            ("row", "places"), [(row, row) for row in rows], indirect=["places"], ids=[row.name for row in rows]
        )


def test_refused(row, places, consisti2v, listing, monkeypatch):
    monkeypatch.chdir(places["out"])
    runs: list[str] = []
    run = OnnxCpuSession.run
    monkeypatch.setattr(OnnxCpuSession, "run", lambda self: (runs.append("a stage"), run(self))[1])
    folders = [places["bad"], places["bundle"], places["out"].parent]
    before = [listing(folder) for folder in folders]

    outcome = consisti2v(*filled(row.arguments, places))

    assert row.says in outcome.refusal()
    assert row.arguments[0] == "inspect" or outcome.stdout == ""
    assert [listing(folder) for folder in folders] == before
    assert row.late or not runs


def test_refused_as_a_process(row, places, consisti2v_process, listing):
    before = listing(places["out"].parent)
    arguments = [os.fsencode(argument) for argument in filled(row.arguments, places)]
    outcome = consisti2v_process(*arguments)
    assert row.says in outcome.refusal()
    assert listing(places["out"].parent) == before


def test_unknown_hub_id_without_a_network(consisti2v, listing, tmp_path, monkeypatch):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    outcome = consisti2v("export", "nobody/no-such-model", "--output", tmp_path / "bundle")
    assert "cannot be fetched from the hub" in outcome.refusal()
    assert listing(tmp_path) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate"],
        generate("--steps", "many"),
        generate("--seed", "1.5"),
        generate("--colour", "red"),
        ["animate"],
        [],
    ],
    ids=" ".join,
)
def test_wrong_usage(consisti2v, tmp_path, monkeypatch, arguments):
    """What typer refuses itself, in its own frame."""
    monkeypatch.chdir(tmp_path)
    outcome = consisti2v(*arguments)
    assert outcome.code == 2 and "Usage: " in outcome.stdout + outcome.stderr
    assert "Traceback" not in outcome.stderr and list(tmp_path.iterdir()) == []


# -- unusual photos that are good --------------------------------------------------------------------------------------


def unusual_photos() -> dict[str, bytes]:
    """Encoded photos of 40x30 pixels: dark above, bright below once they stand upright."""
    picture = np.zeros((30, 40, 3), np.uint8)
    picture[15:] = (250, 240, 230)
    image = Image.fromarray(picture)

    def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    return {
        "exif.jpg": encoded(image.rotate(180), "JPEG", exif=exif),
        "alpha.png": encoded(image.convert("RGBA"), "PNG"),
        "deep.png": encoded(Image.fromarray(picture[..., 0].astype(np.uint16) * 257), "PNG"),
        "cmyk.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "palette.gif": encoded(image.convert("P"), "GIF"),
        "grey.webp": encoded(image.convert("L"), "WEBP"),
    }


def test_unusual_photos_are_handled(consisti2v, demo_bundle, tmp_path):
    """All in one command, one video each."""
    images = []
    for name, content in unusual_photos().items():
        (tmp_path / name).write_bytes(content)
        images += ["--image", tmp_path / name]
    options = ["--steps", "1", "--seed", "0", "--output", tmp_path / "out.png"]
    outcome = consisti2v("generate", "--bundle", demo_bundle, *images, *options)
    assert outcome.code == 0, outcome.stderr
    frames = [np.asarray(Image.open(tmp_path / f"out-{i}-000.png")) for i in range(len(images) // 2)]
    assert len(frames) == 6
    # The same picture in every dress: the image encoder gets, and the decoder gives back, about the same.
    for frame in frames[1:]:
        assert np.abs(frame.astype(float) - frames[0]).mean() < 40
