"""What others have named never steers the terminal: no control character but line ends, through any command."""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
import sys
import unicodedata
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.progress import Progress
from rich.table import Table

from consisti2v_rt.benchmarks.bench.record import read_record
from consisti2v_rt.runtime.bundle.bundle import hash_files
from consisti2v_rt.runtime.commands import console as consoles
from consisti2v_rt.runtime.commands.console import PlainConsole, make_console, plain, plain_lines
from consisti2v_rt.runtime.commands.progress import leading_columns

HOSTILE = "\x1b[31mred\x1b]0;title\x07 \u202eevil\u2066 [bold]x[/bold] [/] :smile: \x9b2J\x7f\r\u200b\u2028y"


def assert_plain(text: str) -> None:
    left = {f"U+{ord(c):04X}" for c in text if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") and c != "\n"}
    assert not left, (left, text)


def assert_same_words(text: str) -> None:
    """What was written is there as it stands: neither markup nor emoji were acted on."""
    assert "[bold]x[/bold]" in text and ":smile:" in text, text


def test_plain_text():
    assert (
        plain("a\nb\tc\x1b[0m") == "a b c [0m" and plain_lines("a\r\nb") == "a \nb" and plain("Bäume 🌳") == "Bäume 🌳"
    )


@pytest.mark.parametrize("terminal", [False, True])
def test_every_way_to_a_console(terminal, capsys):
    console = PlainConsole(
        markup=False, emoji=False, highlight=False, force_terminal=terminal, width=400, color_system=None
    )
    table = Table(HOSTILE, title=HOSTILE, caption=HOSTILE)
    table.add_row(HOSTILE)
    with Progress(*leading_columns(console), console=console, disable=not terminal, transient=False) as progress:
        progress.add_task(HOSTILE, total=3)
        console.print(table)
        console.print(HOSTILE, soft_wrap=True)
        console.log(HOSTILE)
    written = capsys.readouterr().out
    assert "title" in written
    # rich's own control of the cursor on a terminal, and nothing else.
    left = re.sub(r"\x1b\[(\?25[lh]|1A|2K|\d*G)|\r", "", written) if terminal else written
    assert_plain(left)
    assert_same_words(left)


def test_logs_and_warnings(capsys, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    # A command that ran before has left it on, and pytest has put its own function in between since.
    logging.captureWarnings(False)
    consoles.log_to(make_console(stderr=True))
    try:
        logging.getLogger("consisti2v_rt").warning("%s", HOSTILE)
        warnings.warn(HOSTILE, stacklevel=1)
    finally:
        logging.captureWarnings(False)
    written = capsys.readouterr().err
    assert written.count(":smile:") == 2
    assert_plain(written)


@pytest.fixture
def hostile_bundle(demo_bundle, tmp_path):
    """Names of the manifest, and the folder's own, that try to steer a terminal."""
    folder = shutil.copytree(demo_bundle, tmp_path / f"bundle {HOSTILE.replace('/', '|')}")
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["name"] = HOSTILE
    for key in ("source", "revision", "licence"):
        manifest["provenance"][key] = HOSTILE
    manifest["provenance"]["tools"] = {HOSTILE: HOSTILE}
    # File names of a manifest cannot hold control characters: tests/test_bundle_security.py.
    name = "variants/[bold]x[bold].bin"
    (folder / "variants").mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    manifest["files"][name] = asdict(hash_files(folder, [name])[name])
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.slow
def test_commands_on_a_hostile_bundle(consisti2v, hostile_bundle, photo, tmp_path):
    lost = next(path for path in (hostile_bundle / "variants").iterdir() if path.name.endswith(".bin"))
    output = tmp_path / f"{HOSTILE.replace('/', '|')}.mp4"
    for code, *arguments in (
        (0, "inspect", hostile_bundle),
        (0, "inspect", hostile_bundle, "--json"),
        (0, "inspect", hostile_bundle, "--verify"),
        (0, "doctor", "--bundle", hostile_bundle),
        (0, "generate", "-b", hostile_bundle, "-i", photo, "-p", HOSTILE, "-o", output, "--steps", "1"),
        (2, "generate", "-b", hostile_bundle, "-i", photo, "--scheduler", HOSTILE, "-o", output),
        (2, "generate", "-b", hostile_bundle, "-i", tmp_path / HOSTILE, "-o", output),
        (2, "build", hostile_bundle, "--target", HOSTILE),
        (2, "evaluate", tmp_path / f"{HOSTILE}.csv", "-o", tmp_path / "quality"),
        (2, "export", tmp_path / HOSTILE, "-o", tmp_path / "made"),
        (2, "bench", "compare", tmp_path / HOSTILE, tmp_path / HOSTILE),
        (2, HOSTILE),
        (2, "inspect", hostile_bundle, HOSTILE),
        (2, "inspect", f"--{HOSTILE}"),
        (2, "generate", "--steps", HOSTILE),
    ):
        outcome = consisti2v(*(str(argument) for argument in arguments))
        assert outcome.code == code, (arguments, outcome)
        assert_plain(outcome.stdout + outcome.stderr)
        assert "Traceback" not in outcome.stderr
    lost.unlink()
    outcome = consisti2v("inspect", hostile_bundle)
    assert outcome.code == 0 and "is missing" in outcome.stderr
    assert_plain(outcome.stderr)


def test_a_record_with_hostile_names(consisti2v, tmp_path):
    results = Path(consoles.__file__).parents[2] / "benchmarks" / "results" / "latency_demo_cpu.json"
    data = json.loads(results.read_text(encoding="utf-8"))
    data["bundle"]["name"] = HOSTILE
    for subject in data["targets"]:
        subject["name"] = HOSTILE
    path = tmp_path / "record.json"
    path.write_text(json.dumps(data))
    assert read_record(path).bundle["name"] == plain(HOSTILE)
    outcome = consisti2v("bench", "compare", path, path)
    assert_plain(outcome.stdout + outcome.stderr)


def test_a_script_with_hostile_arguments():
    done = subprocess.run(
        [sys.executable, "-m", "consisti2v_rt.benchmarks.device", HOSTILE], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert_plain(done.stderr)


def test_consoles_are_made_in_one_place():
    """Another console, or a bare echo, would be a way around the filter."""
    root = Path(consoles.__file__).parents[2]
    files = [
        root / "cli.py",
        *(file for part in ("runtime", "export", "benchmarks") for file in root.glob(f"{part}/**/*.py")),
    ]
    other = re.compile(r"(?<![.\w])Console\(|typer\.echo\(|ArgumentParser\(")
    found = [
        str(file) for file in files if file.name != "console.py" and other.search(file.read_text(encoding="utf-8"))
    ]
    assert not found, found


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = line.replace("consisti2v", f'"{sys.executable}" -m consisti2v_rt')
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full and bash")
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("consisti2v inspect demo >&-", 0, ""),
        ("consisti2v inspect nothing >&- 2>&-", 2, ""),
        ("consisti2v inspect demo >/dev/full", 2, "No space left on device"),
        ("consisti2v --version >/dev/full", 2, "No space left on device"),
        ("consisti2v inspect nothing >/dev/full 2>/dev/full", 2, ""),
        ("consisti2v demo -i - 0>/dev/null", 2, "standard input cannot be read"),
        ("consisti2v demo -i - 0<&-", 2, "which is closed"),
        ("consisti2v inspect demo | true; exit ${PIPESTATUS[0]}", 1, ""),
    ],
)
def test_streams_that_are_closed_full_or_not_read(line, code, said, tmp_path):
    outcome = shell(line, tmp_path)
    lines = outcome.stderr.splitlines()
    assert outcome.returncode == code and len(lines) == bool(said) and all(said in each for each in lines), outcome
    assert not list(tmp_path.iterdir())
