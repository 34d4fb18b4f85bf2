"""Every kernel compiles for every architecture with no GPU; signatures, hashes and refusals."""

from __future__ import annotations

import io
import re
import shutil
import sys

import numpy as np
import pytest

from consisti2v_rt.kernels.cuda import compile as compiling
from consisti2v_rt.kernels.cuda.compile import CompilerMissingError, compile_cubin, kernel_file, source_hash
from consisti2v_rt.kernels.cuda.sources import FOLDER, SOURCES, EntryPoint, elementwise, per_row
from consisti2v_rt.runtime.install import install_hint

LETTERS = {"pointer": "p", "int32": "i", "int64": "l", "uint64": "u", "float32": "f"}


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_86", "sm_89", "sm_90", "sm_120"])
@pytest.mark.parametrize("name", SOURCES)
def test_compiles_for(name, arch):
    """Into registers alone: a spill would go to memory at every use."""
    pytest.importorskip("cuda.core", reason=f"needs cuda.core: {install_hint('kernels')}")
    log = io.StringIO()
    cubin = compile_cubin(name, arch, log)
    assert cubin[:4] == b"\x7fELF"
    for entry in SOURCES[name]:
        assert f".text.{entry}\0".encode() in cubin
    report = log.getvalue()
    assert f"'{arch}'" in report
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert len(spills) == len(SOURCES[name])
    assert set(spills) == {("0", "0", "0")}


def test_the_same_source_gives_the_same_bytes():
    pytest.importorskip("cuda.core")
    assert compile_cubin("noise", "sm_89") == compile_cubin("noise", "sm_89")


def test_every_source_is_listed():
    assert {f"{name}.cu" for name in SOURCES} == {file.name for file in FOLDER.glob("*.cu")}
    entries = [entry for entries in SOURCES.values() for entry in entries]
    assert len(set(entries)) == len(entries) > 20


def test_what_stands_beside_the_sources_names_their_arguments():
    for entry in (entry for entries in SOURCES.values() for entry in entries.values()):
        assert all(entry.arguments[name] == "pointer" for name in entry.nullable)
        assert all(entry.arguments[name] == "int32" for name in entry.most or ())
        assert entry.call(**dict.fromkeys(entry.arguments, 1)).grid


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_arguments_are_those_of_the_source(host_machine, name):
    """The types as read are those that a compiler deduces."""
    for entry in SOURCES[name].values():
        assert host_machine.signature(entry.name) == "".join(LETTERS[kind] for kind in entry.arguments.values())


def test_the_hash_is_of_all_that_is_compiled(tmp_path, monkeypatch):
    before = {name: source_hash(name) for name in SOURCES}
    assert len(set(before.values())) == len(SOURCES)
    folder = shutil.copytree(FOLDER, tmp_path / "cuda")
    monkeypatch.setattr(compiling, "FOLDER", folder)
    assert {name: source_hash(name) for name in SOURCES} == before

    source = folder / "noise.cu"
    source.write_bytes(source.read_bytes().replace(b"\n", b"\r\n"))
    assert source_hash("noise") == before["noise"]
    source.write_text(source.read_text() + "// another comment\n")
    assert source_hash("noise") != before["noise"] and source_hash("philox") == before["philox"]
    header = folder / "element_types.cuh"
    header.write_text(header.read_text() + "\n")
    assert all(source_hash(name) != before[name] for name in SOURCES)
    monkeypatch.undo()
    monkeypatch.setattr(compiling, "OPTIONS", {"std": "c++17"})
    assert source_hash("noise") != before["noise"]


@pytest.mark.parametrize("arch", ["sm_13", "sm_999", "compute_89", "89", ""])
def test_an_architecture_that_is_none(arch):
    pytest.importorskip("cuda.core")
    with pytest.raises(ValueError, match=r"cannot compile for|no GPU architecture"):
        compile_cubin("noise", arch)


def test_what_is_missing_is_named(monkeypatch):
    pytest.importorskip("cuda.core")
    with monkeypatch.context() as patch:
        patch.setattr("cuda.pathfinder.find_nvidia_header_directory", lambda name: None)
        with pytest.raises(CompilerMissingError, match="headers"):
            compile_cubin("noise", "sm_89")
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(CompilerMissingError, match="needs cuda"):
        compile_cubin("noise", "sm_89")


def test_unknown_names():
    for function in (source_hash, kernel_file, lambda name: compile_cubin(name, "sm_89")):
        with pytest.raises(ValueError, match="Unknown kernel 'nose': choose one of guided_step"):
            function("nose")


ENTRY = EntryPoint(
    "scale",
    "scale",
    {
        "x": "pointer",
        "y": "pointer",
        "factor": "float32",
        "rows": "int32",
        "elements": "int64",
        "seed": "uint64",
        "taps": "int32",
    },
    per_row("elements", "rows"),
    frozenset({"y"}),
    {"taps": 8},
)
GOOD = {"x": 4096, "y": None, "factor": 1 / 3, "rows": 2, "elements": 1000, "seed": 2**64 - 1, "taps": 8}


def test_a_call_puts_arguments_into_order_and_type():
    call = ENTRY.call(**dict(reversed(GOOD.items())))
    assert (call.grid, call.threads) == ((4, 2, 1), 256)
    assert [type(value) for value in call.values] == [int, int, np.float32, np.int32, np.int64, np.uint64, np.int32]
    assert call.values == (4096, 0, np.float32(1 / 3), 2, 1000, 2**64 - 1, 8)


@pytest.mark.parametrize("empty", [{"rows": 0}, {"elements": 0}])
def test_nothing_to_do_is_an_empty_call(empty):
    assert 0 in ENTRY.call(**GOOD | empty).grid


def test_more_elements_than_blocks_are_strided_over():
    rule = elementwise("elements")
    assert rule({"elements": 2**40}) == ((2**20, 1, 1), 256)
    assert rule({"elements": 2**28 - 300}) == ((2**20 - 1, 1, 1), 256)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"z": 1}, r"unknown arguments \['z'\] and lacks \[\]: it takes x, y, factor, rows, elements, seed, taps"),
        ({"x": None}, "needs memory for x: it got none"),
        ({"rows": 2**31}, "rows=2147483648: give a whole number from 0 to 2147483647"),
        ({"rows": -1}, "rows=-1: give a whole number from 0"),
        ({"seed": -1}, "seed=-1: give a whole number from 0"),
        ({"taps": 9}, "taps=9: give a whole number from 0 to 8"),
        ({"rows": 65536}, "split the work, 65535 at most"),
    ],
)
def test_a_call_refuses(changed, message):
    with pytest.raises(ValueError, match=message):
        ENTRY.call(**GOOD | changed)


def test_a_missing_argument_is_named():
    with pytest.raises(ValueError, match=r"lacks \['factor'\]"):
        ENTRY.call(**{name: value for name, value in GOOD.items() if name != "factor"})
