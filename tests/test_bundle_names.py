"""Bundles by name: folders first, then the bundle folder, then the demo inside the package; helpful refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt import UserError
from consisti2v_rt.runtime.bundle.bundle import Bundle
from consisti2v_rt.runtime.bundle.home import DEMO_FOLDER, bundle_home, find_bundle, named_bundles
from consisti2v_rt.runtime.pipeline import ImageToVideo


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty bundle folder, and an empty current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CONSISTI2V_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_demo_has_a_name(photo: Path) -> None:
    assert Bundle.open("demo").path == DEMO_FOLDER
    animate = ImageToVideo.from_bundle("demo", device="cpu", verify=False)
    assert animate.bundle.path == DEMO_FOLDER


def test_a_folder_wins_over_the_bundle_folder_and_that_over_the_demo(home: Path, demo_bundle: Path) -> None:
    shutil.copytree(demo_bundle, home / "demo")
    assert find_bundle("demo") == home / "demo"
    shutil.copytree(demo_bundle, "demo")
    assert find_bundle("demo") == Path("demo")
    (home / "no-bundle").mkdir()
    assert list(named_bundles()) == ["demo"], "a folder without a manifest has no name"


def test_the_bundle_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSISTI2V_HOME", "~/bundles")
    assert bundle_home() == Path("~/bundles").expanduser()
    monkeypatch.setenv("CONSISTI2V_HOME", "")
    assert bundle_home().is_absolute() and bundle_home().name == "consisti2v"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["inspect", "NAME"], ["doctor", "-b", "NAME"], ["bench", "--predict", "-b", "NAME"]]
)
def test_commands_take_names(
    arguments: list[str], home: Path, demo_bundle: Path, consisti2v: Callable[..., Any]
) -> None:
    shutil.copytree(demo_bundle, home / "own")
    for name in ("demo", "own"):
        outcome = consisti2v(*(name if word == "NAME" else word for word in arguments))
        assert outcome.code == 0, outcome.stderr


@pytest.mark.slow
def test_a_video_from_a_name(photo: Path, consisti2v: Callable[..., Any]) -> None:
    outcome = consisti2v("generate", "-b", "demo", "-i", photo, "--steps", "1", "-o", "a.gif")
    assert outcome.code == 0 and Path("a.gif").is_file()


def test_inspect_lists_the_names(home: Path, demo_bundle: Path, consisti2v: Callable[..., Any]) -> None:
    shutil.copytree(demo_bundle, home / "own")
    outcome = consisti2v("inspect")
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.stdout.splitlines()[:2]] == ["demo", "own"]
    assert "one of demo, own." in consisti2v("inspect", "--verify").refusal()


def test_an_unknown_name_lists_the_names(home: Path, demo_bundle: Path, consisti2v: Callable[..., Any]) -> None:
    shutil.copytree(demo_bundle, home / "consisti2v-256")
    sentence = consisti2v("inspect", "consisti2v-265").refusal()
    assert "does not exist" in sentence and "did you mean 'consisti2v-256'?" in sentence
    assert "there are consisti2v-256, demo;" in sentence
    assert "did you mean" not in consisti2v("inspect", "zebra").refusal()


def test_a_hub_id_gives_the_export_command(photo: Path, consisti2v: Callable[..., Any]) -> None:
    for command in (["inspect"], ["build", "--target", "sm89"], ["generate", "-i", photo, "-b"]):
        sentence = consisti2v(*command, "TIGER-Lab/ConsistI2V").refusal()
        assert "'consisti2v export TIGER-Lab/ConsistI2V -o ConsistI2V'" in sentence
    Path("folder").mkdir()
    assert "consisti2v export'." in consisti2v("inspect", "folder/typo").refusal(), "a path below a folder is none"


@pytest.mark.parametrize(
    "name", ["../home/own", "./../home/own", "own/../own", "..", ".hidden", "a\0b", "", "x" * 5000]
)
def test_no_name_leads_out_of_the_bundle_folder(name: str, home: Path, demo_bundle: Path) -> None:
    shutil.copytree(demo_bundle, home / ".hidden")
    try:
        found = find_bundle(name)
    except UserError as error:
        assert str(error).endswith(".")
    else:
        assert found == Path(name), "a path, as it was given"


@pytest.mark.parametrize("wrong", [None, 7, ["demo"], {}])
def test_what_is_neither_path_nor_name(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"a bundle is a path or a name, not \w+"):
        Bundle.open(wrong)


def test_the_packaged_demo_is_not_built_into(home: Path, consisti2v: Callable[..., Any]) -> None:
    before = {path: path.stat().st_mtime_ns for path in DEMO_FOLDER.rglob("*")}
    for name in ("demo", DEMO_FOLDER):
        sentence = consisti2v("build", name, "--target", "sm89").refusal()
        assert str(DEMO_FOLDER) in sentence and str(home / "demo") in sentence
    assert {path: path.stat().st_mtime_ns for path in DEMO_FOLDER.rglob("*")} == before
    shutil.copytree(DEMO_FOLDER, home / "demo")
    # The copy is what the name means then: it is refused for another reason.
    assert "has no stage 'none'" in consisti2v("build", "demo", "--target", "sm89", "--stages", "none").refusal()


def test_a_record_knows_the_bundle_by_its_manifest(consisti2v: Callable[..., Any]) -> None:
    assert json.loads(consisti2v("inspect", "demo", "--json").stdout)["name"] == Bundle.open("demo").manifest.name
