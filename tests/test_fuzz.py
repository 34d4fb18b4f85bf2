"""Some hundreds of seeded changes of everything that comes from outside, through the command line.

Every case ends with exit code 0 and a whole result (the unchanged one, where the change means nothing), or with 2 and
one sentence; with no traceback, no signal, within 15 seconds, and with nothing written outside the output folder.

One case alone: ``pytest "tests/test_fuzz.py::test_case[manifest-17]"``, or ``FUZZ_CASE=manifest-1017``, for any
seed. ``FUZZ_SEEDS=1000:200``: 200 seeds of every family, from 1000 on.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.tests.fuzz.families import FAMILIES, SAME, Case, Sources, copy_bundle, make_case
from consisti2v_rt.tests.fuzz.server import LIMIT

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="every case runs in a fork")]

DATA = Path(__file__).parent / "data"
MOST_MEMORY = {"photo": 2**30}
"""Peak of the whole process; elsewhere:"""
MOST_MEMORY_ELSEWHERE = 3 * 2**30
SAID_BEFORE = ("note: ", "loaded ")
"""Lines that may stand before a refusal: of what was found in order until then."""
AS_PROCESS = ("manifest-2", "structure-0", "weights-5", "photo-3", "photo-7", "listing-3", "record-1")


def wanted() -> list[tuple[str, int]]:
    """Family and seed of every case of this run."""
    if one := os.environ.get("FUZZ_CASE"):
        family, _, seed = one.rpartition("-")
        return [(family, int(seed))]
    first, _, count = os.environ.get("FUZZ_SEEDS", "0:").partition(":")
    return [
        (family, seed)
        for family, (_, usual, _) in FAMILIES.items()
        for seed in range(int(first), int(first) + int(count or usual))
    ]


class Fuzzer:
    """Makes cases and has them run, two at a time."""

    def __init__(self, root: Path, sources: Sources) -> None:
        self.root, self.sources = root, sources
        self._twins: dict[str, Any] = {}
        self._pool = ThreadPoolExecutor(2)
        self._servers: dict[bool, queue.SimpleQueue[subprocess.Popen[str]]] = {}
        self._started: list[subprocess.Popen[str]] = []
        self._ahead: dict[tuple[str, int], Future[tuple[Case, dict[str, Any]]]] = {}

    def begin(self, cases: list[tuple[str, int]]) -> None:
        """Run these in this order while the first are looked at."""
        for case in cases:
            self._ahead[case] = self._pool.submit(self._run, *case)

    def outcome(self, family: str, seed: int) -> tuple[Case, dict[str, Any]]:
        if (family, seed) not in self._ahead:
            self.begin([(family, seed)])
        return self._ahead.pop((family, seed)).result()

    def twin(self, case: Case) -> dict[str, str]:
        """What the command leaves on unchanged input."""
        if "generate" not in self._twins:
            box = self.root / "twin" / "box"
            plain = Case(box)
            for name in ("in", "out", "home", "tmp", "cwd"):
                (box / name).mkdir(parents=True)
            copy_bundle(self.sources.bundle, plain.bundle)
            plain.generate(self.sources)
            answer = self._ask(False, plain)
            assert answer["code"] == 0 and not answer["outside"], answer
            self._twins["generate"] = left(plain.out)
        return self._twins["generate"]

    def make(self, family: str, seed: int, name: str = "box") -> Case:
        return make_case(family, seed, self.root / f"{family}-{seed}" / name, self.sources)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        for server in self._started:
            assert server.stdin is not None
            server.stdin.close()
            server.wait(timeout=60)

    def _run(self, family: str, seed: int) -> tuple[Case, dict[str, Any]]:
        case = self.make(family, seed)
        return case, self._ask(FAMILIES[family][2], case)

    def _ask(self, torch: bool, case: Case) -> dict[str, Any]:
        capture = self.root / "captured" / case.box.parent.name
        capture.mkdir(parents=True)
        # With the folder around the box: a path may climb one step more than expected.
        folders = {"watched": case.box.parent, "box": case.box, "out": case.out, "capture": capture}
        job = {"arguments": case.arguments} | {name: str(folder) for name, folder in folders.items()}
        server = self._server(torch)
        try:
            assert server.stdin is not None and server.stdout is not None
            server.stdin.write(json.dumps({**job, "stubs": case.stubs}) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())
        finally:
            self._servers[torch].put(server)

    def _server(self, torch: bool) -> subprocess.Popen[str]:
        free = self._servers.setdefault(torch, queue.SimpleQueue())
        try:
            return free.get_nowait()
        except queue.Empty:
            command = [sys.executable, "-m", "consisti2v_rt.tests.fuzz.server", *(["torch"] if torch else [])]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            server = subprocess.Popen(command, cwd=self.root, encoding="utf-8", **pipes)
            self._started.append(server)
            return server


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, photo: Path) -> Sources:
    folder = tmp_path_factory.mktemp("sources")
    copy_bundle(DATA / "untrained_bundle", folder / "bundle")
    noise = np.random.default_rng(0)
    for number in range(2):
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=8)
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for _ in range(4):
                picture = av.VideoFrame.from_ndarray(noise.integers(0, 256, (64, 64, 3), np.uint8))
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    bundle = Bundle.open(folder / "bundle")
    record = (DATA.parents[1] / "benchmarks" / "results" / "side_by_side_demo_cpu.json").read_text(encoding="utf-8")
    return Sources(folder / "bundle", bundle.digest, photo, folder, _checkpoint(folder / "checkpoint"), record)


def _checkpoint(folder: Path) -> Path | None:
    """The tiny random model in diffusers layout."""
    try:
        from safetensors.torch import save_file

        from consisti2v_rt.export.random_model import random_model
    except ImportError:
        return None
    model = random_model("tiny")
    config = Bundle.open(DATA / "untrained_bundle", verify=False).manifest.model.unet_config
    (folder / "unet").mkdir(parents=True)
    (folder / "unet" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = {key: value.contiguous() for key, value in model.unet.state_dict().items()}
    save_file(weights, folder / "unet" / "diffusion_pytorch_model.safetensors")
    model.vae.save_pretrained(folder / "vae")
    model.text_encoder.save_pretrained(folder / "text_encoder")
    model.tokenizer.save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def fuzzer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, sources: Sources
) -> Iterator[Fuzzer]:
    made = Fuzzer(tmp_path_factory.mktemp("fuzz"), sources)
    before = left(sources.bundle)
    parameters = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    chosen = [(entry["family"], entry["seed"]) for entry in parameters if {"family", "seed"} <= entry.keys()]
    if "PYTEST_XDIST_WORKER" not in os.environ:
        # Otherwise each worker has a part of them, and does not know which.
        made.begin([case for case in chosen if not _lacking(case[0], sources)])
    yield made
    made.close()
    assert left(sources.bundle) == before, "a command wrote into the bundle that all cases share"


def _lacking(family: str, sources: Sources) -> str:
    if family in ("options", "checkpoint") and sources.checkpoint is None:
        return "needs consisti2v-rt[export]"
    if family == "structure":
        try:
            import onnx  # noqa: F401
        except ImportError:
            return "needs onnx"
    return ""


def left(folder: Path) -> dict[str, str]:
    """Every file below with the hash of its content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def faults(family: str, case: Case, answer: dict[str, Any], fuzzer: Fuzzer) -> list[str]:
    """What a case did wrong, one sentence each."""
    found = [f"outside of the output folder: {deed}" for deed in answer["outside"]]
    printed, code = answer["stdout"] + answer["stderr"], answer["code"]
    if answer["hung"]:
        found.append(f"did not end within {LIMIT:.0f} s")
    elif code < 0:
        found.append(f"ended by signal {-code}")
    elif code not in (0, 2):
        found.append(f"exit code {code}")
    if "Traceback" in printed:
        found.append("a traceback")
    if odd := {character for character in printed if not character.isprintable() and character not in "\n\u00a0"}:
        found.append(f"control characters on the terminal: {sorted(odd)}")
    if answer["peak_bytes"] > (most := MOST_MEMORY.get(family, MOST_MEMORY_ELSEWHERE)):
        found.append(f"{answer['peak_bytes'] / 2**20:.0f} MiB of memory, more than {most / 2**20:.0f}")
    if code == 2:
        lines = [line for line in answer["stderr"].splitlines() if not line.startswith(SAID_BEFORE)]
        if len(lines) != 1 or not lines[0].startswith("error: ") or not lines[0].endswith("."):
            found.append("not refused in one sentence")
        if (kept := left(case.out)) and family != "record":
            found.append(f"refused, and left {sorted(kept)}")
    elif code == 0:
        found += _wrong_result(case, fuzzer)
    return found


def _wrong_result(case: Case, fuzzer: Fuzzer) -> list[str]:
    command, made = case.arguments[0], left(case.out)
    if not case.leaves:
        return ["accepted, although a file is not as it was recorded"]
    if command == "generate":
        twin = fuzzer.twin(case)
        if case.leaves == SAME and made != twin:
            return ["another video, although the change means nothing"]
        if made.keys() != twin.keys():
            return [f"left {sorted(made)}"]
        sizes = {Image.open(case.out / name).size for name in made}
        return [] if sizes == {(128, 128)} else [f"pictures of {sizes}"]
    if command == "evaluate":
        values = json.loads((case.out / "quality" / "quality.json").read_text(encoding="utf-8"))
        return [] if values["videos"] else ["measured no video"]
    return []


@pytest.mark.rare
@pytest.mark.parametrize(("family", "seed"), wanted(), ids=lambda value: str(value))
def test_case(family: str, seed: int, fuzzer: Fuzzer, sources: Sources) -> None:
    if lacking := _lacking(family, sources):
        pytest.skip(lacking)
    case, answer = fuzzer.outcome(family, seed)
    found = faults(family, case, answer, fuzzer)
    assert not found, told(f"{family}-{seed}", case, answer, found)


def told(name: str, case: Case, answer: dict[str, Any], found: list[str]) -> str:
    """Everything that is needed to see it again."""
    return "\n".join(
        [
            f"{name}: {'; '.join(found)}",
            f"done to the input: {case.what}",
            f"command: consisti2v {shlex.join(case.arguments)}",
            f"exit code {answer['code']} after {answer['seconds']:.1f} s, {answer['peak_bytes'] / 2**20:.0f} MiB",
            f"stderr: {answer['stderr'][-1500:]}",
            f"again: FUZZ_CASE={name} pytest tests/test_fuzz.py",
        ]
    )


@pytest.mark.parametrize("name", [] if "FUZZ_CASE" in os.environ or "FUZZ_SEEDS" in os.environ else AS_PROCESS)
def test_the_same_in_a_process_of_its_own(name: str, fuzzer: Fuzzer, sources: Sources) -> None:
    """A fork has imported everything already: the command as users start it says the same."""
    family, _, seed = name.rpartition("-")
    if lacking := _lacking(family, sources):
        pytest.skip(lacking)
    case = fuzzer.make(family, int(seed), "alone")
    surroundings = {"HOME": str(case.box / "home"), "COLUMNS": "200", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "consisti2v_rt", *case.arguments],
        cwd=case.box / "cwd",
        env={**os.environ, **surroundings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    stderr = done.stderr.decode(errors="replace")
    assert done.returncode in (0, 2) and "Traceback" not in stderr, stderr
    assert done.returncode == 0 or stderr.splitlines()[-1].startswith("error: "), stderr
