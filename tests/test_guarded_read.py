"""The reader of files from outside: what it refuses, each in one sentence, and what it must let pass."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from consisti2v_rt import UserError
from consisti2v_rt.runtime.files.guarded_read import (
    CONFIG,
    MAX_DEPTH,
    FileKind,
    csv_rows,
    json_lines,
    parse_json,
    read_bytes,
    read_json,
    read_json_object,
    read_text,
)

KIND = FileKind(1 << 20, "write it again")


def refusal(path, read=read_json, kind=KIND) -> str:
    with pytest.raises(UserError) as caught:
        read(path, kind)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.endswith(f": {kind.remedy}.") and "\n" not in message
    return message


@pytest.mark.skipif(os.name != "posix", reason="POSIX kinds of files")
def test_only_regular_files_are_read_and_none_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe" in refusal(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    assert "is a pipe" in refusal(tmp_path / "link")
    assert "is a device" in refusal("/dev/zero")
    assert "is a device" in refusal("/dev/null")
    assert "is a folder" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "none")
    assert "cannot be read" in refusal(tmp_path / ("x" * 300))
    assert "no possible name" in refusal("a\0b")
    short = Path(os.path.relpath(tmp_path))
    with socket.socket(socket.AF_UNIX) as listening:
        name = short / "s"
        if len(os.fspath(name)) < 100:
            listening.bind(os.fspath(name))
            assert "is a socket" in refusal(name)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_file_without_a_size_is_refused():
    assert "more content than its size" in refusal("/proc/self/status", read_text)


def test_a_file_over_its_limit_is_not_read(tmp_path):
    large = tmp_path / "large.json"
    with large.open("wb") as file:
        file.truncate(1 << 40)  # sparse: reading it would never end
    assert "more than 1 MiB" in refusal(large)
    assert CONFIG.max_bytes == 1 << 20


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "1e999 does not fit"),
        (b'{"a": 18446744073709551616}', "does not fit"),
        (b'{"a": ' + b"9" * 500_000 + b"}", "does not fit"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is there twice"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": ["\\u0000"]}', "NUL"),
        (b'{"a": "\x00"}', "NUL"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        ('{"a": 1}'.encode("utf-16-be"), "NUL"),
        (b"[" * 100_000, "levels"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "levels"),
        (b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), "levels"),
    ],
)
def test_json_that_is_no_strict_json_is_refused(tmp_path, content, fault):
    file = tmp_path / "a.json"
    file.write_bytes(content)
    message = refusal(file)
    assert fault in message and len(message) < 300 + len(str(file))


def test_what_is_valid_is_read_as_before(tmp_path):
    value = {"a": [1, -2, 1.5, 1e-300, None, True, "\U0001f600 \u2028", 2**64 - 1], "b": {"c": {}}}
    file = tmp_path / "a.json"
    file.write_text(json.dumps(value), encoding="utf-8-sig")
    assert read_json(file, KIND) == read_json_object(file, KIND) == value
    depth = MAX_DEPTH - 1
    assert parse_json("[" * depth + "]" * depth)
    assert read_bytes(file, KIND).startswith(b"\xef\xbb\xbf") and not read_text(file, KIND).startswith("\ufeff")
    file.write_text("[1]")
    assert "JSON object" in refusal(file, read_json_object)


def test_lines_end_with_line_feeds_alone():
    text = '{"a": "x\u2028y\u2029z\x85\x0b\x0c\x1c"}\r\n\n  \n2\n'
    assert [(number, line.strip()) for number, line in json_lines(text)] == [(1, text.split("\r")[0]), (4, "2")]


def test_csv_rows():
    text = 'path, caption\n\n1.mp4,"two\nlines, \u2028 and a ""quote"""\n , \n2.mp4\n'
    assert list(csv_rows(text)) == [
        (4, {"path": "1.mp4", "caption": 'two\nlines, \u2028 and a "quote"'}),
        (6, {"path": "2.mp4"}),
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"path,caption\n1.mp4,{'x' * 2_000_000}\n", "not valid CSV in line 2"),
        ('path,caption\n1.mp4,"open\n', "not valid CSV"),
        ("path,caption\n1.mp4,a,b\n", "more fields in line 2"),
        ("path,path\n1.mp4,a\n", "'path' twice"),
    ],
)
def test_csv_that_cannot_be_right_is_refused(text, fault):
    with pytest.raises(ValueError, match=fault):
        list(csv_rows(text))


def test_a_long_field_is_read(tmp_path):
    assert len(next(csv_rows(f"path,caption\n1.mp4,{'x' * 500_000}\n"))[1]["caption"]) == 500_000
