"""The cache of compiled kernels: bytes in, bytes out, whatever else happens to the file."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from consisti2v_rt.runtime.gpu.jit_cache import CacheKey, JitCache, read_cache, write_cache

KEY = CacheKey("a" * 64, "NVIDIA GeForce RTX 4060", "13.0", "tensorrt-rtx 1.7.1.116")


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / KEY.file_name("unet")
    assert read_cache(path) is None
    for data in (b"", b"kernels", bytes(range(256)) * 1000):
        assert write_cache(path, data) and read_cache(path) == data
    assert [entry.name for entry in tmp_path.iterdir() if entry.suffix != ".lock"] == [path.name]


@pytest.mark.parametrize("field", ["engine_sha256", "gpu", "driver", "library"])
def test_every_part_of_the_key_counts(field: str) -> None:
    other = dataclasses.replace(KEY, **{field: "other"})
    assert other.file_name("unet") != KEY.file_name("unet") != KEY.file_name("vae_decoder")
    assert "/" not in KEY.file_name("unet") and " " not in KEY.file_name("unet")


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-1], lambda c: c + b"x", lambda c: c[:40], lambda c: b"", lambda c: b"x" + c[1:]]
)
def test_damage_counts_as_none(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "unet.jit"
    write_cache(path, b"kernels" * 10)
    path.write_bytes(damage(path.read_bytes()))
    assert read_cache(path) is None


def test_a_place_that_cannot_be_written_to_is_no_error(tmp_path: Path) -> None:
    assert write_cache(tmp_path / "absent" / "unet.jit", b"kernels") is False
    (tmp_path / "taken.jit").mkdir()
    assert write_cache(tmp_path / "taken.jit", b"kernels") is False
    assert not list(tmp_path.rglob("*.partial-*"))


def test_two_processes(tmp_path: Path) -> None:
    """Two writers at once and a reader: every read is one writer's whole bytes."""
    path = tmp_path / "unet.jit"
    code = (
        "import sys; from pathlib import Path; from consisti2v_rt.runtime.gpu.jit_cache import write_cache\n"
        "for _ in range(60): assert write_cache(Path(sys.argv[1]), sys.argv[2].encode() * 200000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        data = read_cache(path)
        assert data is None or data in (b"a" * 200000, b"b" * 200000)
        seen.add(data)
    assert [writer.returncode for writer in writers] == [0, 0] and len(seen - {None}) > 0


class FakeCache:
    """The library's cache object."""

    def __init__(self, accepted: bool) -> None:
        self.accepted, self.content = accepted, b"empty"

    def deserialize(self, data: bytes) -> bool:
        if self.accepted:
            self.content = data
        return self.accepted

    def serialize(self) -> bytes:
        return self.content


class FakeConfig:
    def __init__(self, accepted: bool = True) -> None:
        self.made: list[FakeCache] = []
        self.accepted = accepted
        self.used: FakeCache | None = None

    def create_runtime_cache(self) -> FakeCache:
        self.made.append(FakeCache(self.accepted))
        return self.made[-1]

    def set_runtime_cache(self, cache: FakeCache) -> None:
        self.used = cache


def test_what_one_process_compiled_the_next_one_has(tmp_path: Path) -> None:
    path = tmp_path / "unet.jit"
    first, config = JitCache(path), FakeConfig()
    first.save()
    assert not path.exists(), "nothing was compiled"
    first.attach(config)
    first.attach(config)
    assert len(config.made) == 1, "every context of an engine shares one cache"
    config.made[0].content = b"compiled"
    first.save()
    again = FakeConfig()
    JitCache(path).attach(again)
    assert again.used is not None and again.used.content == b"compiled"


def test_a_cache_the_library_refuses_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "unet.jit"
    write_cache(path, b"of another driver")
    cache, config = JitCache(path), FakeConfig(accepted=False)
    cache.attach(config)
    assert config.made[0].content == b"empty"
    config.made[0].content = b"compiled anew"
    cache.save()
    assert read_cache(path) == b"compiled anew"


def test_nothing_new_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "unet.jit"
    write_cache(path, b"compiled")
    cache = JitCache(path)
    cache.attach(FakeConfig())
    before = path.stat().st_mtime_ns
    cache.save()
    assert path.stat().st_mtime_ns == before
