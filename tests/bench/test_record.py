"""Records on disk: the same again after reading, and refused when they are something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from consisti2v_rt import UserError
from consisti2v_rt.benchmarks.bench.record import KINDS, Record, check_writable, place_of, read_record


@pytest.mark.parametrize("kind", KINDS)
def test_written_and_read_again(tmp_path: Path, make_record: Callable[..., Record], kind: str) -> None:
    record = make_record(kind)
    record.save(tmp_path / "record.json")
    assert read_record(tmp_path / "record.json") == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_the_file_holds_raw_samples_and_what_they_come_to(make_record: Callable[..., Record]) -> None:
    data = json.loads(make_record(seconds=[3.0, 1.0, 2.0]).to_json())
    row = data["targets"][0]["rows"][0]
    assert row["seconds"] == [3.0, 1.0, 2.0] and (row["min"], row["median"], row["max"]) == (1.0, 2.0, 3.0)
    assert data["schema_version"] == 1 and data["machine"]["cpu"] == "Some CPU" and data["bundle"]["sha256"]
    assert data["targets"][1]["unavailable"] == "there is no GPU" and data["targets"][1]["rows"] == []


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.update(schema_version=2),
        lambda data: data.update(kind="latencies"),
        lambda data: data.pop("machine"),
        lambda data: data.update(more=1),
        lambda data: data["targets"][0]["rows"][0].update(seconds=[float("nan")]),
        lambda data: data["targets"][0]["rows"][0].update(seconds=[-1.0]),
        lambda data: data["targets"][0]["rows"][0].update(seconds=[1e300]),
        lambda data: data["targets"][0]["rows"][0].update(runs="2"),
        lambda data: data["targets"][0].update(name=3),
        lambda data: data.update(machine="mine"),
        lambda data: data.update(settings={}),
        lambda data: data["machine"].update(gpus=[3]),
        lambda data: data["bundle"].update(name=None),
        lambda data: data["targets"][0].update(rows=3),
    ],
)
def test_anything_else_is_refused(
    tmp_path: Path, make_record: Callable[..., Record], change: Callable[[dict[str, object]], object]
) -> None:
    data = json.loads(make_record().to_json())
    change(data)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="is not a record of 'consisti2v bench'"):
        read_record(path)


def test_names_cannot_write_to_the_terminal(make_record: Callable[..., Record]) -> None:
    record = make_record()
    record.targets[0].name = "\x1b[2Jsession\u202e"
    record.bundle = {**record.bundle, "name": "a\x1b]0;title\x07b"}
    read = Record.from_json(record.to_json(), "record.json")
    assert read.targets[0].name == " [2Jsession " and read.bundle["name"].isprintable()


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read|does not exist"):
        read_record(tmp_path / "none.json")
    (tmp_path / "picture.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_record(tmp_path / "picture.json")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(UserError, match="make it first"):
        check_writable(tmp_path / "none" / "record.json")


def test_names_of_files(make_record: Callable[..., Record]) -> None:
    assert place_of(make_record(), None).name == "some_cpu.json"
    assert place_of(make_record("side_by_side"), None).name == "some_side_by_side_cpu.json"
    odd = make_record()
    odd.bundle = {**odd.bundle, "name": "../a b/\u00e9"}
    assert place_of(odd, None).name == "a_b_\u00e9_cpu.json"
