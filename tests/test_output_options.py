"""Help, completion, standard input, configuration files and the options of output files on the command line."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command

from consisti2v_rt import cli
from consisti2v_rt.errors import UserError
from consisti2v_rt.export import random_options
from consisti2v_rt.runtime.commands import inputs
from consisti2v_rt.runtime.commands.console import PlainConsole
from consisti2v_rt.runtime.commands.inputs import EXAMPLE, with_config
from consisti2v_rt.runtime.pipeline import ImageToVideo
from consisti2v_rt.runtime.request.option_table import PANELS
from consisti2v_rt.runtime.request.settings import GenerationSettings

COMMANDS = ["", "generate", "demo", "export", "build", "inspect", "evaluate", "doctor", "bench", "bench run"]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_h_is_help_everywhere_and_plain_in_a_pipe(consisti2v, command):
    short, long = consisti2v(*command.split(), "-h"), consisti2v(*command.split(), "--help")
    assert short.code == 0 and short == long and re.search(rf"Usage: .*consisti2v {command}".rstrip(), short.stdout)
    assert "\x1b" not in short.stdout and not re.search("[\u2500-\u257f]", short.stdout)


def test_options_of_generate_stand_in_groups(consisti2v):
    said = consisti2v("generate", "-h").stdout
    panels = re.findall(r"^(\w[\w ]+):$", said, re.MULTILINE)
    assert panels == list(PANELS)
    guidance = said[said.index("Guidance:") : said.index("FrameInit:")]
    assert "--guidance-scale" in guidance and "--fps" not in guidance


@pytest.mark.parametrize("name", ["generate", "demo"])
def test_every_option_has_a_group(name):
    command = get_command(cli.app).commands[name]
    assert all(param.rich_help_panel in PANELS for param in command.params)


def test_wrong_usage_is_plain_in_a_pipe(consisti2v):
    outcome = consisti2v("generate", "--no-such-option")
    assert outcome.code == 2 and outcome.stderr.isascii() and "No such option" in outcome.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminal")
@pytest.mark.parametrize(
    ("environment", "styled"), [({}, True), ({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, False)], ids=str
)
def test_help_on_a_terminal(tmp_path, environment, styled):
    import pty

    ours, theirs = pty.openpty()
    clean = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "PY_COLORS", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-m", "consisti2v_rt", "demo", "-h"],
        cwd=tmp_path,
        stdout=theirs,
        stderr=theirs,
        env=clean | {"TERM": "xterm-256color", "COLUMNS": "100"} | environment,
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:  # the other side is closed
        pass
    assert process.wait(60) == 0 and "--scale" in re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    assert (b"\x1b[" in shown, b"Output" in shown, not shown.isascii()) == (styled, True, styled)


def test_a_console_that_is_not_looked_at_draws_in_ascii(monkeypatch, capsys):
    from rich.table import Table

    monkeypatch.setenv("NO_COLOR", "1")
    table = Table("name", "value", title="[bold red]title[/]")
    table.add_row("caf\u00e9", "1")
    PlainConsole(force_terminal=True, width=40).print(table)
    said = capsys.readouterr().out
    assert "caf\u00e9" in said and said.replace("\u00e9", "e").isascii() and "\x1b" not in said


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_shown_and_installed(consisti2v_process, tmp_path, shell):
    environment = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    shown = consisti2v_process("--show-completion", shell, **environment)
    assert shown.code == 0 and "_COMPLETE" in shown.stdout
    installed = consisti2v_process("--install-completion", shell, **environment)
    assert installed.code == 0, installed.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()]


# -- standard input --------------------------------------------------------------------------------------------------


def run_piped(data: bytes, folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "consisti2v_rt", "demo", "--steps", "1", *arguments]
    return subprocess.run(command, input=data, cwd=folder, capture_output=True, timeout=120)


@pytest.mark.slow
def test_a_photo_from_standard_input_is_the_photo_of_its_file(tmp_path, photo):
    piped = run_piped(photo.read_bytes(), tmp_path, "-i", "-", "-o", "piped.gif")
    assert piped.returncode == 0, piped.stderr
    assert run_piped(b"", tmp_path, "-i", str(photo), "-o", "file.gif").returncode == 0
    assert (tmp_path / "piped.gif").read_bytes() == (tmp_path / "file.gif").read_bytes()


class StandardInput:
    def __init__(self, terminal: bool, data: bytes = b"") -> None:
        import io

        self.terminal, self.buffer = terminal, io.BytesIO(data)

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stdin", "said"),
    [
        (StandardInput(True), "is a terminal"),
        (None, "is closed"),
        (StandardInput(False), "holds no photo"),
        (StandardInput(False, b"x" * 101), "more than"),
        (StandardInput(False, b"no photo"), "not an image"),
    ],
)
def test_standard_input_that_is_no_photo_is_refused(consisti2v, tmp_path, monkeypatch, stdin, said):
    monkeypatch.setattr(inputs, "MAX_BYTES", 100)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert said in consisti2v("demo", "-i", "-", "-o", tmp_path / "out.mp4").refusal()
    assert not list(tmp_path.iterdir())


def test_standard_output_is_no_video_file(consisti2v):
    assert "standard output" in consisti2v("demo", "-o", "-").refusal()


# -- settings and files ----------------------------------------------------------------------------------------------


def test_example_settings_are_settings(consisti2v):
    settings = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    GenerationSettings.from_options(settings)
    assert EXAMPLE.name in consisti2v("generate", "-h").stdout


def test_example_unet_is_a_unet(consisti2v):
    assert random_options.random_unet_config(str(random_options.EXAMPLE)).n_frames > 1
    assert random_options.EXAMPLE.name in re.sub(r"\s", "", consisti2v("export", "-h").stdout)


def test_options_win_over_the_file_and_a_preset_over_its_steps(tmp_path):
    file = tmp_path / "c.json"
    file.write_text('{"num_inference_steps": 3, "seed": 9, "preset": "exact"}')
    assert with_config(file, {"seed": 4}) == {"num_inference_steps": 3, "seed": 4, "preset": "exact"}
    assert with_config(file, {"preset": "balanced"}) == {"seed": 9, "preset": "balanced"}


def test_a_file_may_use_other_names_of_options(tmp_path):
    file = tmp_path / "c.json"
    file.write_text('{"steps": 10, "guidance_scale": 2, "clips": 3}')
    assert with_config(file, {"num_inference_steps": 5}) == {
        "num_inference_steps": 5,
        "guidance_scale_txt": 2,
        "autoregress_steps": 3,
    }
    file.write_text('{"steps": 10, "num_steps": 10}')
    with pytest.raises(UserError, match="two names of one option"):
        with_config(file, {})


@pytest.mark.slow
def test_generate_uses_the_settings_of_a_file(consisti2v, tmp_path, demo_bundle, photo, monkeypatch):
    seen = []
    real = ImageToVideo.check
    monkeypatch.setattr(ImageToVideo, "check", lambda *a, **k: seen.append(k["settings"]) or real(*a, **k))
    (tmp_path / "c.json").write_text('{"num_inference_steps": 1, "eta": 0.5, "guidance_scale_txt": 2, "fps": 4}')
    arguments = ["--config", tmp_path / "c.json", "--guidance-scale", "1", "--fit", "pad", "--scale", "0.5"]
    outcome = consisti2v(
        "generate", "-b", demo_bundle, "-i", photo, "-o", tmp_path / "a.gif", "--no-verify", *arguments
    )
    assert outcome.code == 0, outcome.stderr
    settings = seen[0]
    assert (settings.num_inference_steps, settings.eta, settings.fps, settings.fit) == (1, 0.5, 4, "pad")
    assert settings.guidance_scale_txt == 1
    assert Image.open(tmp_path / "a.gif").size == (32, 32) and "32x32" in outcome.stdout
    assert "is cropped" not in outcome.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1]", "does not hold a JSON object"),
        ('{"fsp": 1}', "did you mean fps"),
        ('{"fps": NaN}', "NaN is no number of JSON"),
        ('{"fps": 0}', "fps 0"),
        ('{"preset": "quick"}', "preset 'quick' is unknown"),
        (" " * 2**20 + "{}", "more than 1 MiB"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_refused_settings_files(consisti2v, tmp_path, demo_bundle, photo, text, said):
    if text is not None:
        (tmp_path / "c.json").write_text(text)
    arguments = [
        "-b",
        demo_bundle,
        "-i",
        photo,
        "-o",
        tmp_path / "a.gif",
        "--no-verify",
        "--config",
        tmp_path / "c.json",
    ]
    outcome = consisti2v("generate", *arguments)
    assert outcome.code == 2 and said in outcome.stderr and len(outcome.stderr.splitlines()) == 1
    assert not (tmp_path / "a.gif").exists()


@pytest.mark.slow
def test_what_is_cropped_away_is_told_once(consisti2v, tmp_path, photo):
    arguments = ["demo", "--steps", "1", "-i", photo, "-o", tmp_path / "a.gif"]
    told = [line for line in consisti2v(*arguments).stderr.splitlines() if "cropped" in line]
    assert told == [
        "note: the 451x300 photo is cropped to 64x64: 33% of its width is cut off; --fit pad or --fit stretch keeps it"
    ]
    assert "cropped" not in consisti2v(*arguments, "--fit", "stretch").stderr
