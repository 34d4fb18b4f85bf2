"""What is fuzzed: for every family a function that makes one case of a seed, in a box of its own."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .mutations import changed_paths, hostile, mutate_bytes, mutate_json, mutate_text

MANIFEST = "bundle.json"
SAME, WHOLE = "same", "whole"
"""What exit code 0 must leave: what the unchanged command leaves, bit for bit; or a whole result of any content."""
_WRITE_BUNDLE = "consisti2v_rt.export.bundle_writer:write_bundle"
# Entries that say how a video is made: another value may make another one.
_MEANING = (("scheduler",), ("frame_init",), ("recommended",), ("model", "vae_scaling_factor"), ("tokenizer",))
_GRAPHS = ("text_encoder", "conditioning", "vae_encoder", "unet", "vae_decoder")


@dataclass
class Sources:
    """Good input, made once, never written to."""

    bundle: Path
    digest: str
    photo: Path
    videos: Path
    """Folder with 0.mp4 and 1.mp4."""
    checkpoint: Path | None
    """Folder in diffusers layout; None without torch."""
    record: str
    """Of ``bench``, as JSON."""


@dataclass
class Case:
    """One command on changed input."""

    box: Path
    """Its folder: ``in``, ``out``, ``home``, ``tmp``, ``cwd`` and ``outside``, which nothing may touch."""
    what: str = ""
    """What was done to the input."""
    arguments: list[str] = field(default_factory=list)
    leaves: str = WHOLE
    """For exit code 0: :data:`SAME` or :data:`WHOLE`; "" where it must be refused."""
    stubs: tuple[str, ...] = ()

    @property
    def given(self) -> Path:
        return self.box / "in"

    @property
    def out(self) -> Path:
        return self.box / "out"

    @property
    def bundle(self) -> Path:
        return self.given / "bundle"

    def generate(self, sources: Sources, photo: Path | None = None, *options: str) -> None:
        """The command that makes a video of one step, as pictures."""
        given = ["--bundle", str(self.bundle), "--image", str(photo or sources.photo), "--prompt", "a cat"]
        made = ["--steps", "1", "--seed", "0", "--threads", "1", "--output", str(self.out / "out.png")]
        self.arguments = ["generate", *given, *made, *options]


def manifest(case: Case, sources: Sources, rng: random.Random, seed: int) -> None:
    """``bundle.json`` changed: looked at, used, and used with a digest."""
    copy_bundle(sources.bundle, case.bundle)
    path = case.bundle / MANIFEST
    good = json.loads(path.read_text(encoding="utf-8"))
    text, case.what = mutate_json(rng, good)
    write(path, text)
    if seed % 3 == 0:
        case.arguments = ["inspect", str(case.bundle), "--verify"]
        return
    if seed % 3 == 1:
        case.generate(sources, None, "--expect-digest", sources.digest)
        case.leaves = SAME
        return
    case.generate(sources)
    try:
        changed = list(changed_paths(good, json.loads(text)))
    except (ValueError, RecursionError):
        changed = []
    means_another = any(place[: len(entry)] == entry for place in changed for entry in _MEANING)
    case.leaves = WHOLE if means_another else SAME


def graph(case: Case, sources: Sources, rng: random.Random, seed: int) -> None:
    """Bytes of a graph changed; recorded as they are in two of three."""
    copy_bundle(sources.bundle, case.bundle)
    name = rng.choice(_GRAPHS)
    path = case.bundle / name / f"{name}.onnx"
    good = path.read_bytes()
    changed, case.what = mutate_bytes(rng, good, 4096)
    _put(case, path, changed, good, recorded=seed % 3 > 0)
    case.generate(sources)


def structure(case: Case, sources: Sources, rng: random.Random, seed: int) -> None:
    """A graph that is a graph still, with something hostile in it, recorded as it is."""
    import onnx

    copy_bundle(sources.bundle, case.bundle)
    name = rng.choice(_GRAPHS)
    path = case.bundle / name / f"{name}.onnx"
    model = onnx.load(str(path), load_external_data=False)
    case.what = f"{name}: {_STRUCTURES[seed % len(_STRUCTURES)](rng, model, case)}"
    _put(case, path, model.SerializeToString(), b"", recorded=True)
    case.generate(sources, None, *(["--time-limit", "2"] if "loop" in case.what else []))


def weights(case: Case, sources: Sources, rng: random.Random, seed: int) -> None:
    """A file of weights changed, or something else in its place."""
    copy_bundle(sources.bundle, case.bundle)
    name = rng.choice(_GRAPHS)
    path = case.bundle / name / f"{name}.onnx.data"
    case.generate(sources)
    if seed % 2:
        _replace(case, path, rng)
        return
    good = path.read_bytes()
    what = rng.choice(("bytes", "bytes", "zeros", "not numbers", "longer", "infinite"))
    if what == "bytes":
        changed, case.what = mutate_bytes(rng, good)
    else:
        fill = {"zeros": b"\x00" * 4, "not numbers": b"\xff" * 4, "infinite": struct.pack("<f", float("inf"))}
        changed = good + b"\x00" * 4096 if what == "longer" else fill[what] * (len(good) // 4)
        case.what = what
    _put(case, path, changed, good, recorded=seed % 4 > 0)


def tokenizer(case: Case, sources: Sources, rng: random.Random, seed: int) -> None:
    """``tokenizer.json`` changed and recorded."""
    copy_bundle(sources.bundle, case.bundle)
    path = case.bundle / "tokenizer" / "tokenizer.json"
    good = path.read_bytes()
    if seed % 2:
        changed, case.what = mutate_text(rng, good)
    else:
        data = json.loads(good)
        model, vocabulary = data["model"], data["model"].pop("vocab")
        merges = model.pop("merges", None)
        text, case.what = mutate_json(rng, data)
        try:
            data = json.loads(text)
            # Large and uniform: a change of them is one of few that matter.
            data["model"] |= {"vocab": {word: hostile(rng, 1) for word in list(vocabulary)[:50]}}
            data["model"] |= {"merges": merges} if rng.random() < 0.5 else {}
            text = json.dumps(data).encode()
        except (ValueError, RecursionError, KeyError, TypeError):
            pass
        changed = text
    _put(case, path, changed, good, recorded=True)
    case.generate(sources)


def photo(case: Case, sources: Sources, rng: random.Random, seed: int) -> None:
    """A photo of every format changed, a picture bomb, or something that is no file."""
    copy_bundle(sources.bundle, case.bundle)
    path = case.given / "photo"
    if seed % 4 == 3:
        case.what, path = _odd_photo(case, path, rng, seed // 4)
    else:
        Image.init()
        kinds = [kind for kind in _PHOTOS if kind.split()[0] in Image.SAVE]
        kind = kinds[seed % len(kinds)]
        changed, what = mutate_bytes(rng, _encoded(kind), 400)
        write(path, changed)
        case.what = f"{kind}: {what}"
    case.generate(sources, path)


def listing(case: Case, sources: Sources, rng: random.Random, seed: int) -> None:
    """A CSV or JSONL listing of two videos changed."""
    for name in ("0.mp4", "1.mp4"):
        copy_file(sources.videos / name, case.given / name)
    rows: list[Any] = [{"path": "0.mp4", "caption": "a cat"}, {"path": "1.mp4", "caption": 'a "dog", running'}]
    if seed % 2:
        path = case.given / "listing.csv"
        text = io.StringIO()
        writer = csv.DictWriter(text, ["path", "caption"])
        writer.writeheader()
        writer.writerows({key: hostile(rng, v) if rng.random() < 0.3 else v for key, v in row.items()} for row in rows)
        content = text.getvalue().encode("utf-8", "surrogatepass")
        case.what = "fields replaced"
        if rng.random() < 0.6:
            content, case.what = mutate_text(rng, content)
    else:
        path = case.given / "listing.jsonl"
        lines = []
        for row in rows:
            line, what = mutate_json(rng, row) if rng.random() < 0.7 else (json.dumps(row).encode(), "as it is")
            lines.append(line)
            case.what += f"{what}. "
        content = rng.choice((b"\n", b"\r\n", b"\n\n", b"\xe2\x80\xa8\n")).join(lines)
    if rng.random() < 0.1:
        content *= 50_000
        case.what += " 50,000 times"
    write(path, content)
    case.arguments = ["evaluate", str(path), "--measure", "temporal_flickering", "--output", str(case.out / "quality")]


def options(case: Case, sources: Sources, rng: random.Random, seed: int) -> None:
    """U-Net options of a model with random weights changed; an accepted one is built, and not exported."""
    from consisti2v_rt.runtime.bundle.bundle import Bundle

    good = Bundle.open(sources.bundle, verify=False).manifest.model.unet_config
    text, case.what = mutate_json(rng, good)
    path = case.given / "options.json"
    write(path, text)
    case.arguments = ["export", "--random-weights", str(path), "--output", str(case.out / "bundle")]
    case.arguments += ["--height", "128", "--width", "128"]
    case.stubs = (_WRITE_BUNDLE,)


def checkpoint(case: Case, sources: Sources, rng: random.Random, seed: int) -> None:
    """A configuration of a checkpoint changed; an accepted one is loaded, and not exported."""
    assert sources.checkpoint is not None
    folder = case.given / "checkpoint"
    for path in sources.checkpoint.rglob("*"):
        if path.is_file():
            copy_file(path, folder / path.relative_to(sources.checkpoint))
    files = sorted(path for path in folder.rglob("*.json") if path.stat().st_size < 2**16)
    # The U-Net's is ours to check; the others are read by libraries.
    path = folder / "unet" / "config.json" if rng.random() < 0.4 else rng.choice(files)
    text, what = mutate_json(rng, json.loads(path.read_text(encoding="utf-8")))
    case.what = f"{path.relative_to(folder)}: {what}"
    write(path, text)
    case.arguments = ["export", str(folder), "--output", str(case.out / "bundle"), "--height", "128", "--width", "128"]
    case.stubs = (_WRITE_BUNDLE,)


def record(case: Case, sources: Sources, rng: random.Random, seed: int) -> None:
    """A record of ``bench`` changed: compared with the good one, or reported."""
    before, after = case.given / "before.json", case.given / "after.json"
    write(before, sources.record.encode())
    text, case.what = mutate_json(rng, json.loads(sources.record))
    write(after, text)
    if seed % 3 == 0:
        case.arguments = ["bench", "report", str(after), "--output", str(case.out / "report.md")]
        # The picture stands beside its record.
        after.rename(case.out / "after.json")
        case.arguments[2] = str(case.out / "after.json")
    else:
        case.arguments = ["bench", "compare", str(before), str(after), *(["--force"] if seed % 3 == 1 else [])]


Family = Callable[[Case, Sources, random.Random, int], None]
FAMILIES: dict[str, tuple[Family, int, bool]] = {
    "manifest": (manifest, 60, False),
    "graph": (graph, 24, False),
    "structure": (structure, 24, False),
    "weights": (weights, 20, False),
    "tokenizer": (tokenizer, 10, False),
    "photo": (photo, 60, False),
    "listing": (listing, 20, True),
    "options": (options, 24, True),
    "checkpoint": (checkpoint, 12, True),
    "record": (record, 24, False),
}
"""Name -> what makes a case of it, how many there are, and whether its command imports torch."""


def make_case(family: str, seed: int, box: Path, sources: Sources) -> Case:
    """The case of a seed, always the same; its files are written."""
    case = Case(box)
    for name in ("in", "out", "home", "tmp", "cwd", "outside"):
        (box / name).mkdir(parents=True)
    write(box / "outside" / "x", b"not yours")
    FAMILIES[family][0](case, sources, random.Random(f"{family}-{seed}"), seed)
    return case


# -- files -------------------------------------------------------------------------------------------------------------


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def copy_file(source: Path, target: Path) -> None:
    """No hard link: onnx refuses a file that has several, and other tests read the source meanwhile."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def copy_bundle(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            copy_file(path, target / path.relative_to(source))


def _put(case: Case, path: Path, content: bytes, good: bytes, *, recorded: bool) -> None:
    """Replace a bundle's file; unless the manifest records it so, it must be refused."""
    write(path, content)
    if recorded:
        _record(case, path)
        case.what += ", recorded"
    elif content != good:
        case.leaves = ""


def _record(case: Case, path: Path) -> None:
    name, content = path.relative_to(case.bundle).as_posix(), path.read_bytes()
    manifest = json.loads((case.bundle / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    write(case.bundle / MANIFEST, json.dumps(manifest, indent=2).encode())


def _replace(case: Case, path: Path, rng: random.Random) -> None:
    """Something that is not a plain file in a file's place, or beside it."""
    case.what = rng.choice(
        ("link", "link inside", "pipe", "folder", "device", "missing", "more", "folder link", "socket")
    )
    case.leaves = ""
    content = path.read_bytes()
    if case.what == "more":
        write(path.with_name("more.data"), b"x")
        case.leaves = SAME
        return
    if case.what == "folder link":
        folder = path.parent
        shutil.move(folder, case.box / "outside" / "stage")
        folder.symlink_to(case.box / "outside" / "stage")
        return
    path.unlink()
    if case.what == "link":
        write(case.box / "outside" / "weights", content)
        path.symlink_to(case.box / "outside" / "weights")
    elif case.what == "link inside":
        write(case.bundle / "weights", content)
        path.symlink_to(case.bundle / "weights")
    elif case.what in ("pipe", "socket"):
        os.mkfifo(path)
    elif case.what == "folder":
        path.mkdir()
    elif case.what == "device":
        path.symlink_to("/dev/zero")


# -- graphs ------------------------------------------------------------------------------------------------------------


def _location(rng: random.Random, model: Any, case: Case) -> str:
    """Weights that are somewhere else."""
    held = [tensor for tensor in model.graph.initializer if tensor.external_data]
    tensor = rng.choice(held)
    where = rng.choice(
        (
            "../../outside/x",
            str(case.box / "outside" / "x"),
            "/dev/zero",
            "../unet/unet.onnx.data",
            "a\x00b",
            "",
            "none.data",
            "..\\x",
            "/proc/self/mem",
            f"../{MANIFEST}",
        )
    )
    for entry in tensor.external_data:
        if entry.key == "location":
            entry.value = where
    return f"location {where!r}"


def _place(rng: random.Random, model: Any, case: Case) -> str:
    """Weights at a place that their file does not have."""
    tensor = rng.choice([tensor for tensor in model.graph.initializer if tensor.external_data])
    key = rng.choice(("offset", "length"))
    value = rng.choice(("-1", "0", "1", str(2**62), str(2**63), str(2**64), "1e9", "x", "", " 4096", "99999999"))
    for entry in tensor.external_data:
        if entry.key == key:
            entry.value = value
    return f"{key} {value!r}"


def _domain(rng: random.Random, model: Any, case: Case) -> str:
    node = rng.choice(model.graph.node)
    node.domain = rng.choice(("com.evil", "com.microsoft", "ai.onnx.contrib", "ai.onnx.ml", "\x1b[2J", "ai.onnx"))
    model.opset_import.add(domain=node.domain, version=1)
    return f"domain {node.domain!r}"


def _operator(rng: random.Random, model: Any, case: Case) -> str:
    node = rng.choice(model.graph.node)
    node.op_type = rng.choice(("NoSuch", "Loop", "Identity", "Conv", "", "MatMul", "Gather", "Reshape", "\x1b[31m"))
    return f"operator {node.op_type!r}"


def _dimensions(rng: random.Random, model: Any, case: Case) -> str:
    tensor = rng.choice(model.graph.initializer)
    if not tensor.dims:
        tensor.dims.append(2**40)
    place = rng.randrange(len(tensor.dims))
    tensor.dims[place] = rng.choice((0, -1, 1, 2**31, 2**62, 2**63 - 1, tensor.dims[place] + 1))
    return f"a weight's size {tensor.dims[place]}"


def _kind(rng: random.Random, model: Any, case: Case) -> str:
    tensor = rng.choice(model.graph.initializer)
    tensor.data_type = rng.choice((0, 2, 6, 7, 8, 10, 11, 14, 16, 17, 23, 99, -1))
    return f"a weight's type {tensor.data_type}"


def _opset(rng: random.Random, model: Any, case: Case) -> str:
    model.opset_import[0].version = rng.choice((0, -1, 1, 7, 99, 2**62))
    return f"opset {model.opset_import[0].version}"


def _edges(rng: random.Random, model: Any, case: Case) -> str:
    """A node that reads what comes later, or nothing."""
    node = rng.choice([node for node in model.graph.node if node.input])
    node.input[0] = rng.choice((model.graph.node[-1].output[0], "", "none", node.output[0]))
    return f"input {node.input[0]!r}"


def _signature(rng: random.Random, model: Any, case: Case) -> str:
    """An input or output of another name, kind or size."""
    value = rng.choice([*model.graph.input, *model.graph.output])
    what = rng.choice(("name", "kind", "size"))
    if what == "name":
        value.name = rng.choice(("x", "", "\x1b[2J", value.name + "x"))
    elif what == "kind":
        value.type.tensor_type.elem_type = rng.choice((0, 7, 8, 10, 11, 99))
    else:
        size = rng.choice(value.type.tensor_type.shape.dim)
        size.dim_value = rng.choice((0, -1, 1, 2**31, 2**62))
    return f"{what} of {value.name!r}"


def _loop(rng: random.Random, model: Any, case: Case) -> str:
    """A loop without end in front of the last node."""
    from onnx import TensorProto, helper

    flag = helper.make_tensor("fuzz_true", TensorProto.BOOL, [], [True])
    many = helper.make_tensor("fuzz_many", TensorProto.INT64, [], [2**62])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, []),
        ],
    )
    zero = helper.make_tensor("fuzz_zero", TensorProto.FLOAT, [], [0.0])
    loop = helper.make_node("Loop", ["fuzz_many", "fuzz_true", "fuzz_zero"], ["fuzz_end"], body=body)
    last = model.graph.node[-1]
    output = last.output[0]
    last.output[0] = "fuzz_last"
    model.graph.initializer.extend([flag, many, zero])
    model.graph.node.extend([loop, helper.make_node("Add", ["fuzz_last", "fuzz_end"], [output])])
    return "loop without end"


def _function(rng: random.Random, model: Any, case: Case) -> str:
    """A weight in an attribute, held outside."""
    from onnx import TensorProto, helper

    tensor = TensorProto(name="held", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=rng.choice(("../../outside/x", str(case.box / "outside" / "x"))))
    model.graph.node.insert(0, helper.make_node("Constant", [], ["fuzz_constant"], value=tensor))
    return "a constant held outside"


def _large(rng: random.Random, model: Any, case: Case) -> str:
    """A tensor that no memory holds."""
    from onnx import TensorProto, helper

    shape = helper.make_tensor("fuzz_shape", TensorProto.INT64, [2], [2 ** rng.choice((18, 20, 31)), 2**20])
    model.graph.initializer.append(shape)
    last = model.graph.node[-1]
    output = last.output[0]
    last.output[0] = "fuzz_last"
    model.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["fuzz_shape"], ["fuzz_large"]),
            helper.make_node("ReduceMax", ["fuzz_large"], ["fuzz_one"], keepdims=0),
            helper.make_node("Add", ["fuzz_last", "fuzz_one"], [output]),
        ]
    )
    return "a tensor of 2**38 numbers or more"


_STRUCTURES: tuple[Callable[[random.Random, Any, Case], str], ...] = (
    _location,
    _place,
    _domain,
    _operator,
    _dimensions,
    _kind,
    _opset,
    _edges,
    _signature,
    _loop,
    _function,
    _large,
)


# -- photos ------------------------------------------------------------------------------------------------------------

_PHOTOS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "JPEG2000", "AVIF", "PNG 16", "TIFF 32", "GIF frames")


def _encoded(kind: str) -> bytes:
    rng = np.random.default_rng(7)
    picture = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
    name, _, variant = kind.partition(" ")
    more: dict[str, Any] = {}
    if variant == "16":
        picture = Image.fromarray(rng.integers(0, 2**16, (48, 64), np.uint16))
    elif variant == "32":
        picture = Image.fromarray(rng.random((48, 64), np.float32))
    elif variant == "frames":
        more = {"save_all": True, "append_images": [picture.rotate(90), picture.rotate(180)]}
    elif name == "JPEG":
        exif = Image.Exif()
        exif[0x0112] = 6
        more = {"exif": exif}
    file = io.BytesIO()
    picture.save(file, name, **more)
    return file.getvalue()


def _odd_photo(case: Case, path: Path, rng: random.Random, number: int) -> tuple[str, Path]:
    what = _ODD_PHOTOS[number % len(_ODD_PHOTOS)]
    if what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "device":
        path = Path("/dev/zero")
    elif what == "link to a device":
        path.symlink_to("/dev/zero")
    elif what == "link in a circle":
        path.symlink_to(path)
    elif what == "sparse":
        with path.open("wb") as file:
            file.write(b"\xff\xd8\xff\xe0")
            file.truncate(2**36)
    elif what == "no name":
        path = case.given / ("x" * 5000)
    else:
        write(path, _bomb(what, rng))
    return what, path


_ODD_PHOTOS = (
    "pipe",
    "PNG bomb",
    "folder",
    "device",
    "GIF bomb",
    "link to a device",
    "BMP bomb",
    "link in a circle",
    "sparse",
    "SVG",
    "PPM bomb",
    "EPS",
    "no name",
    "PNG line",
    "TIFF bomb",
)


def _bomb(what: str, rng: random.Random) -> bytes:
    """A small file of a large picture, or of a format that runs programs."""
    if what == "PNG bomb":
        return _png(rng.choice((9_000, 30_000)), rng.choice((9_000, 30_000)), rng.choice((0, 2, 6)))
    if what == "PNG line":
        return _png(50_000, 16, 2)
    if what == "GIF bomb":
        return b"GIF89a" + struct.pack("<HH", 65_000, 65_000) + b"\x80\x00\x00" + b"\x00" * 6 + b",\x00\x00\x00\x00"
    if what == "BMP bomb":
        return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, 40_000, -40_000, 1, 24, 0, 0, 0, 0, 0, 0)
    if what == "PPM bomb":
        return b"P6 20000 20000 65535\n" + b"\x00" * 100
    if what == "TIFF bomb":
        entries = [(256, 4, 50_000), (257, 4, 50_000), (258, 3, 32), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
        entries += [(277, 3, 1), (278, 4, 50_000), (279, 4, 2**31 - 1), (339, 3, 3)]
        table = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
        return b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", len(entries)) + table + b"\x00" * 4
    if what == "SVG":
        return b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(x) (w) file\nshowpage\n%%EOF\n"


def _png(width: int, height: int, colour: int) -> bytes:
    """All black, and compressed a thousand times."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    line = 1 + width * {0: 1, 2: 3, 6: 4}[colour]
    packer, packed = zlib.compressobj(1), b""
    for _ in range(min(height, 2000)):
        packed += packer.compress(bytes(line))
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    data = packed + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
