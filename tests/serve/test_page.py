"""The page in a real browser, against a real server with the demo model.

One browser and one server with an API key serve all tests; each test has a browser context of its own, as a visitor
has. ``PAGE_SCREENSHOT=assets/page.png pytest tests/serve/test_page.py -k screenshot`` makes the README's picture.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from consisti2v_rt.runtime.media.read_video import read_video

playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the page's tests need axe-playwright-python")
pytest.importorskip("fastapi", reason="the server needs the extra serve")
expect = playwright.expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium")

KEY = "a key"
EXAMPLE = Path(__file__).parents[2] / "assets" / "example.jpg"


class Server:
    """``consisti2v serve`` as a process, which can be ended and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        self.folder = folder
        self.start()

    def start(self) -> None:
        arguments = ["serve", "--port", str(self.port), "--api-key", KEY, "--data", str(self.folder)]
        self.process = subprocess.Popen([sys.executable, "-m", "consisti2v_rt", *arguments])

    def wait(self) -> None:
        for _ in range(600):
            try:
                urllib.request.urlopen(self.address + "ready", timeout=5)
            except OSError:
                assert self.process.poll() is None, "the server ended"
                time.sleep(0.1)
            else:
                return
        raise AssertionError("the server was not ready within a minute")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("served"))
    running.wait()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visitor:
    """A browser context with its tabs; knows the key unless told otherwise."""

    def __init__(self, context: Any, server: Server, key: str | None) -> None:
        self.context = context
        self.server = server
        self.problems: list[str] = []
        if key is not None:
            context.add_init_script(f"sessionStorage.getItem('{STORED}') ?? sessionStorage.setItem('{STORED}', '{key}')")

    def tab(self, wait: bool = True) -> Any:
        page = self.context.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda said: "Content Security Policy" in said.text and self.problems.append(said.text))
        page.goto(self.server.address)
        if wait:
            expect(page.get_by_role("button", name="Animate", exact=True)).to_be_enabled(timeout=20_000)
        return page


STORED = "consisti2v-api-key"


@pytest.fixture
def visit(browser: Any, server: Server) -> Iterator[Callable[..., Visitor]]:
    """Opens a visitor; at the end no page may have thrown an error or broken the content policy."""
    visitors: list[Visitor] = []

    def opened(key: str | None = KEY, **options: Any) -> Visitor:
        visitors.append(Visitor(browser.new_context(**options), server, key))
        return visitors[-1]

    yield opened
    for visitor in visitors:
        visitor.context.close()
    assert [problem for visitor in visitors for problem in visitor.problems] == []


def start(page: Any, steps: int, prompt: str = "zoom in") -> None:
    """Chooses the example photo and starts a video."""
    page.get_by_role("button", name="Use the example photo").click()
    page.get_by_role("button", name=prompt, exact=True).click()
    set_steps(page, steps)
    page.get_by_role("button", name="Animate", exact=True).click()


def set_steps(page: Any, steps: int) -> None:
    page.locator("#advanced").evaluate("element => { element.open = true; }")
    page.locator("[data-setting=num_inference_steps]").fill(str(steps))


def end_of_stage(page: Any) -> None:
    expect(page.locator("#video")).to_be_visible(timeout=30_000)


def in_mid_job(page: Any) -> None:
    expect(page.locator("#steps")).to_have_text(re.compile(r"Step \d+ of \d+"), timeout=30_000)


def check_accessible(page: Any) -> None:
    result = axe.Axe().run(page)
    assert result.violations_count == 0, result.generate_report()


def drop(page: Any, name: str, kind: str, content: bytes) -> None:
    """Drops a file onto the page."""
    text = base64.b64encode(content).decode()
    script = """([text, name, type]) => {
        const data = new DataTransfer();
        data.items.add(new File([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], name, { type }));
        return data;
    }"""
    data = page.evaluate_handle(script, [text, name, kind])
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("#drop", event, {"dataTransfer": data})


def test_from_drop_to_the_downloaded_files(visit, tmp_path, monkeypatch):
    page = visit(accept_downloads=True, permissions=["clipboard-read", "clipboard-write"]).tab()
    drop(page, "cat.jpg", "image/jpeg", EXAMPLE.read_bytes())
    # 451 x 300 pixels, of which a square is used.
    expect(page.locator("#crop-text")).to_contain_text("33\N{NO-BREAK SPACE}% of the width is cut off")
    frame, crop = (page.locator(of).bounding_box() for of in ("#photo-image", "#crop"))
    assert crop["width"] / frame["width"] == pytest.approx(300 / 451, abs=0.01)
    assert crop["x"] - frame["x"] == pytest.approx((frame["width"] - crop["width"]) / 2, abs=1)

    page.get_by_role("button", name="pan left", exact=True).click()
    page.get_by_label("Seed", exact=True).fill("7")
    set_steps(page, 4)
    page.get_by_role("button", name="Animate", exact=True).click()
    expect(page.locator("#preview")).to_have_attribute("src", re.compile("^data:image/"))
    end_of_stage(page)
    assert page.locator("#video").evaluate("video => video.loop && !video.paused")

    frames = {}
    for name in ("MP4", "GIF", "WebP"):
        with page.expect_download() as downloading:
            page.get_by_role("button", name=f"Download {name}").click()
        file = tmp_path / downloading.value.suggested_filename
        downloading.value.save_as(file)
        assert file.suffix == f".{name.lower()}"
        frames[name] = read_video(file)[0]
        assert len(frames[name]) == 16

    # The recipes make the same video, byte for byte.
    page.get_by_text("Make it without this page").click()
    page.get_by_role("button", name="Copy Python").click()
    program = page.evaluate("navigator.clipboard.readText()")
    (by_server,) = tmp_path.glob("video*.mp4")
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE, "photo.jpg")
    exec(compile(program, "recipe", "exec"), {})
    assert Path("video.mp4").read_bytes() == by_server.read_bytes()
    words = shlex.split(page.locator("#command").inner_text())
    assert words[:2] == ["consisti2v", "generate"] and "pan left" in words and "7" in words


def test_cancel(visit):
    page = visit().tab()
    start(page, 900)
    in_mid_job(page)
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.locator("#stage-text")).to_have_text("This video was cancelled.")
    expect(page.locator("#server-text")).to_contain_text("ready")


def test_reload_in_mid_job_and_a_second_tab(visit):
    visitor = visit()
    page = visitor.tab()
    start(page, 60)
    in_mid_job(page)
    page.reload()
    in_mid_job(page)
    other = visitor.tab()
    in_mid_job(other)  # without being asked: a video is running
    for tab in (page, other):
        end_of_stage(tab)
        expect(tab.locator("#gallery .card[aria-current=true] video")).to_have_count(1)
    before = page.locator("#gallery .card").count()
    page.locator("#remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.locator("#gallery .card")).to_have_count(before - 1)
    expect(other.locator("#gallery .card")).to_have_count(before - 1, timeout=10_000)


def test_again_with_another_seed_after_a_reload(visit):
    """The photo and the settings come from the server."""
    page = visit().tab()
    start(page, 2)
    end_of_stage(page)
    first = page.locator("#job-facts").inner_text()
    page.reload()
    end_of_stage(page)
    page.get_by_role("button", name="Again with another seed").click()
    seed = re.search(r"seed \d+", first)[0]
    expect(page.locator("#job-facts")).not_to_contain_text(seed)
    expect(page.locator("#job-facts")).to_contain_text("seed ")
    end_of_stage(page)
    expect(page.locator("#command")).to_contain_text("--num-inference-steps 2")
    page.get_by_role("button", name="Edit these settings").click()
    expect(page.locator("[data-setting=num_inference_steps]")).to_have_value("2")
    expect(page.locator("#photo-image")).to_have_js_property("naturalWidth", 451)


def test_without_events_the_page_polls(visit):
    visitor = visit()
    visitor.context.route("**/events", lambda route: route.abort())
    page = visitor.tab()
    start(page, 2)
    end_of_stage(page)


def test_the_key_is_asked_for_once(visit):
    page = visit(key=None).tab(wait=False)
    for typed, told in (("wrong", "Type the key that the server"), (KEY, "does not know that key")):
        expect(page.locator("#ask-text")).to_contain_text(told)
        check_accessible(page)
        page.get_by_label("API key").fill(typed)
        page.get_by_role("button", name="Continue").click()
    for _ in range(2):
        expect(page.get_by_role("button", name="Animate", exact=True)).to_be_enabled()
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.reload()


def test_errors_are_the_servers_sentences(visit):
    page = visit().tab()
    page.get_by_role("button", name="Animate", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("Choose a photo first")
    drop(page, "notes.txt", "text/plain", b"text")
    expect(page.get_by_role("alert")).to_contain_text("notes.txt is not a picture")
    drop(page, "broken.jpg", "image/jpeg", b"not a picture")
    expect(page.locator("#crop-text")).to_contain_text("cannot show")
    page.get_by_role("button", name="Animate", exact=True).click()
    expect(page.get_by_role("alert").first).to_contain_text("photo")
    drop(page, "cat.jpg", "image/jpeg", EXAMPLE.read_bytes())
    page.locator("#advanced summary").click()
    page.locator("[data-setting=eta]").fill("1")
    page.locator("[data-setting=scheduler]").select_option("euler")
    page.get_by_role("button", name="Animate", exact=True).click()
    expect(page.get_by_role("alert").first).to_contain_text("eta")


def test_phone_width_and_the_keyboard_alone(visit):
    page = visit(viewport={"width": 360, "height": 740}, reduced_motion="reduce", has_touch=True).tab()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    expect(page.locator("#stage")).to_be_hidden()
    with page.expect_file_chooser() as choosing:
        page.locator("#file").focus()
        page.keyboard.press("Enter")
    choosing.value.set_files(EXAMPLE)
    for key in ("Tab", "Tab", "Tab", "Space"):  # the prompt, then the second move
        page.keyboard.press(key)
    expect(page.locator("#prompt")).to_have_value("pan right")
    set_steps(page, 2)
    page.locator("#prompt").focus()
    page.keyboard.press("Control+Enter")
    end_of_stage(page)
    assert page.locator("#stage").evaluate("element => element === document.activeElement")
    assert page.locator("#video").evaluate("video => video.paused")  # motion is reduced
    page.get_by_role("button", name="Play").press("Enter")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_axe_finds_no_violation_in_light_and_dark(visit):
    page = visit(color_scheme="light").tab()
    check_accessible(page)
    start(page, 2)
    end_of_stage(page)
    page.locator("#recipe summary").click()
    check_accessible(page)
    dark = visit(color_scheme="dark").tab()
    dark.get_by_role("button", name="Use the example photo").click()
    dark.locator("#gallery .card.completed").first.click()
    end_of_stage(dark)
    dark.locator("#advanced summary").click()
    check_accessible(dark)


@pytest.mark.skipif("PAGE_SCREENSHOT" not in os.environ, reason="PAGE_SCREENSHOT names no file")
def test_the_readmes_screenshot(visit):
    page = visit(viewport={"width": 1180, "height": 800}).tab()
    start(page, 50)
    page.locator("#advanced summary").click()
    end_of_stage(page)
    expect(page.locator("#gallery video").first).to_have_js_property("readyState", 4)
    page.screenshot(path=os.environ["PAGE_SCREENSHOT"])


def test_a_server_that_starts_again(visit, server):
    """The last test: the page waits for the server and goes on with the job that it watched."""
    page = visit().tab()
    start(page, 60)
    in_mid_job(page)
    server.stop()
    expect(page.locator("#phase")).to_have_text("Waiting for the server", timeout=10_000)
    expect(page.locator("#server-text")).to_have_text("No connection to the server", timeout=10_000)
    server.start()
    end_of_stage(page)
    expect(page.locator("#server-text")).to_contain_text("ready")
