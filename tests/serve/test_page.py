"""The page in a real browser, against a real server with the demo model.

One browser serves all tests; each test has a browser context of its own, as a visitor has.
``PAGE_SCREENSHOT=docs/page.png pytest tests/serve/test_page.py -k screenshot`` makes the README's picture.
"""

from __future__ import annotations

import base64
import io
import os
import re
import shlex
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from consisti2v_rt.runtime.media.read_video import read_video

playwright = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the page's tests need axe-playwright-python")
expect = playwright.expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: apt-get install chromium"),
]

KEY = "a-key-of-this-test"
SLOW_MS = 60_000
"""Until a video is there, or a server: longer than any busy machine takes."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Visitor:
    """A browser context with its tabs."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.problems: list[str] = []

    def tab(self, address: str, wait: bool = True) -> Any:
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda said: "Content Security Policy" in said.text and self.problems.append(said.text))
        page.goto(address)
        if wait:
            expect(animate(page)).to_be_enabled(timeout=SLOW_MS)
        return page


@pytest.fixture
def visitor(browser: Any) -> Iterator[Callable[..., Visitor]]:
    """Opens a browser context; at the end no page may have thrown an error or broken the content policy."""
    visitors: list[Visitor] = []

    def opened(**options: Any) -> Visitor:
        context = browser.new_context(**options)
        context.set_default_timeout(20_000)
        visitors.append(Visitor(context))
        return visitors[-1]

    yield opened
    for one in visitors:
        one.context.close()
    assert [problem for one in visitors for problem in one.problems] == []


@pytest.fixture
def visit(visitor: Callable[..., Visitor], server: Any) -> Callable[..., Any]:
    """A tab of a new visitor, on the shared server."""
    return lambda **options: visitor(**options).tab(server.address)


def animate(page: Any) -> Any:
    return page.get_by_role("button", name="Animate", exact=True)


def start(page: Any, steps: int, prompt: str = "zoom in") -> None:
    """Chooses the example photo and starts a video."""
    page.get_by_role("button", name="Use the example photo").click()
    page.get_by_role("button", name=prompt, exact=True).click()
    set_steps(page, steps)
    animate(page).click()


def set_steps(page: Any, steps: int) -> None:
    page.locator("#advanced").evaluate("element => { element.open = true; }")
    page.get_by_label("Steps", exact=True).fill(str(steps))


def end_of_stage(page: Any) -> None:
    expect(page.locator("#video")).to_be_visible(timeout=SLOW_MS)


def in_mid_job(page: Any) -> None:
    expect(page.locator("#steps")).to_have_text(re.compile(r"Step \d+ of \d+"), timeout=SLOW_MS)


def cancel(page: Any) -> None:
    page.locator("#cancel").click()
    expect(page.locator("#stage-text")).to_have_text("This video was cancelled.", timeout=SLOW_MS)


def check_accessible(page: Any) -> None:
    result = axe.Axe().run(page)
    assert result.violations_count == 0, result.generate_report()


def transfer(page: Any, name: str, kind: str, content: bytes) -> Any:
    """A file as the browser hands it over when it is dropped or pasted."""
    text = base64.b64encode(content).decode()
    script = """([text, name, type]) => {
        const data = new DataTransfer();
        data.items.add(new File([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], name, { type }));
        return data;
    }"""
    return page.evaluate_handle(script, [text, name, kind])


def drop(page: Any, name: str, kind: str, content: bytes) -> None:
    data = transfer(page, name, kind, content)
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event("#drop", event, {"dataTransfer": data})


def test_from_drop_to_the_downloaded_files(visit, photo, tmp_path, monkeypatch):
    page = visit(accept_downloads=True, permissions=["clipboard-read", "clipboard-write"])
    drop(page, "cat.jpg", "image/jpeg", photo.read_bytes())
    # 451 x 300 pixels, of which a square is used.
    expect(page.locator("#crop-text")).to_contain_text("33\N{NO-BREAK SPACE}% of the width is cut off")
    frame, crop = (page.locator(of).bounding_box() for of in ("#photo-image", "#crop"))
    assert crop["width"] / frame["width"] == pytest.approx(300 / 451, abs=0.01)
    assert crop["x"] - frame["x"] == pytest.approx((frame["width"] - crop["width"]) / 2, abs=1)

    page.get_by_role("button", name="pan left", exact=True).click()
    page.get_by_label("Seed", exact=True).fill("7")
    set_steps(page, 3)
    animate(page).click()
    expect(page.locator("#preview")).to_have_attribute("src", re.compile("^data:image/"), timeout=SLOW_MS)
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
    shutil.copy(photo, "photo.jpg")
    exec(compile(program, "recipe", "exec"), {})
    assert Path("video.mp4").read_bytes() == by_server.read_bytes()
    words = shlex.split(page.locator("#command").inner_text())
    assert words[:2] == ["consisti2v", "generate"] and "pan left" in words and "7" in words


@pytest.mark.rare
def test_reload_in_mid_job_and_a_second_tab(visitor, server):
    one = visitor()
    page = one.tab(server.address)
    start(page, 200)
    in_mid_job(page)
    page.reload()
    in_mid_job(page)
    other = one.tab(server.address)
    in_mid_job(other)  # without being asked: a video is running
    expect(page.locator("#server-text")).to_contain_text("busy")
    start(other, 200)
    expect(other.locator("#phase")).to_have_text("Next in the queue")
    expect(other.locator("#server-text")).to_contain_text("1 video waiting")
    cancel(other)
    other.locator("#gallery .card.in_progress").click()
    in_mid_job(other)
    cancel(other)
    expect(page.locator("#stage-text")).to_have_text("This video was cancelled.")
    before = other.locator("#gallery .card").count()
    expect(page.locator("#gallery .card")).to_have_count(before, timeout=20_000)
    page.locator("#remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    for tab in (page, other):
        expect(tab.locator("#gallery .card")).to_have_count(before - 1, timeout=20_000)


def test_again_with_another_seed_after_a_reload(visit):
    """The photo and the settings come from the server."""
    page = visit()
    start(page, 1, "still")
    end_of_stage(page)
    seed = re.search(r"seed \d+", page.locator("#job-facts").inner_text())[0]
    page.reload()
    end_of_stage(page)
    page.get_by_role("button", name="Again with another seed").click()
    expect(page.locator("#job-facts")).not_to_contain_text(seed)
    end_of_stage(page)
    expect(page.locator("#command")).to_contain_text("--prompt still")
    expect(page.locator("#command")).to_contain_text("--num-inference-steps 1 ")
    page.get_by_role("button", name="Edit these settings").click()
    expect(page.get_by_label("Steps", exact=True)).to_have_value("1")
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("still")
    expect(page.locator("#photo-image")).to_have_js_property("naturalWidth", 451)


def test_errors_are_the_servers_sentences(visit, photo):
    page = visit()
    animate(page).click()
    alert = page.locator("#form-error")
    expect(alert).to_contain_text("Choose a photo first")
    drop(page, "notes.txt", "text/plain", b"text")
    expect(alert).to_contain_text("notes.txt is not a picture")
    drop(page, "broken.jpg", "image/jpeg", b"not a picture")
    expect(page.locator("#crop-text")).to_contain_text("cannot show")
    animate(page).click()
    expect(page.locator("#job-error")).to_contain_text("photo", timeout=SLOW_MS)
    paste = "data => { document.dispatchEvent(new ClipboardEvent('paste', { clipboardData: data })); }"
    page.evaluate(paste, transfer(page, "cat.jpg", "image/jpeg", photo.read_bytes()))
    expect(page.locator("#crop-text")).to_contain_text("cut off")
    page.get_by_text("Advanced settings").click()
    page.get_by_label("Steps", exact=True).fill("0")
    animate(page).click()  # refused by the field itself
    page.get_by_label("Steps", exact=True).fill("2")
    page.get_by_label("Cache interval").fill("2")
    animate(page).click()
    expect(alert).to_contain_text("this bundle has no shallow U-Net")


def test_phone_width_the_keyboard_alone_and_no_events(visit, photo):
    """Where the stream of events does not come through, the page polls."""
    page = visit(viewport={"width": 360, "height": 740}, reduced_motion="reduce", has_touch=True)
    page.context.route("**/events", lambda route: route.abort())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    with page.expect_file_chooser() as choosing:
        page.locator("#file").focus()
        page.keyboard.press("Enter")
    choosing.value.set_files(photo)
    for key in ("Tab", "Tab", "Tab", "Space"):  # the prompt, then the second move
        page.keyboard.press(key)
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("pan right")
    set_steps(page, 1)
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    end_of_stage(page)
    assert page.locator("#stage").evaluate("element => element === document.activeElement")
    assert page.locator("#video").evaluate("video => video.paused")  # motion is reduced
    page.get_by_role("button", name="Play").press("Enter")
    expect(page.get_by_role("button", name="Pause")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_axe_finds_no_violation_in_light_and_dark(visit):
    page = visit(color_scheme="light")
    start(page, 1)
    end_of_stage(page)
    page.locator("#recipe summary").click()
    check_accessible(page)
    dark = visit(color_scheme="dark")
    dark.get_by_role("button", name="Use the example photo").click()
    dark.locator("#gallery .card.completed").first.click()
    end_of_stage(dark)
    dark.locator("#remove").click()
    check_accessible(dark)


@pytest.mark.rare
def test_the_key_is_asked_for_once_and_the_server_starts_again(visitor, servers):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        options = ("--port", str(free.getsockname()[1]), "--api-key", KEY, "--drain", "0")
    server = servers(*options)
    page = visitor().tab(server.address, wait=False)
    for typed, told in (("wrong", "Type the key that the server"), (KEY, "does not know that key")):
        expect(page.locator("#ask-text")).to_contain_text(told)
        check_accessible(page)
        page.get_by_label("API key").fill(typed)
        page.get_by_role("button", name="Continue").click()
    expect(animate(page)).to_be_enabled()
    page.reload()
    expect(animate(page)).to_be_enabled()
    expect(page.get_by_role("dialog")).to_have_count(0)

    # The page waits for the server, and goes on with the job that the new one runs again.
    start(page, 200)
    in_mid_job(page)
    server.stop()
    expect(page.locator("#phase")).to_have_text("Waiting for the server", timeout=20_000)
    expect(page.locator("#server-text")).to_have_text("No connection to the server", timeout=20_000)
    servers(*options, wait=False)
    in_mid_job(page)
    cancel(page)


@pytest.mark.skipif("PAGE_SCREENSHOT" not in os.environ, reason="PAGE_SCREENSHOT names no file")
def test_the_readmes_screenshot(visit):
    page = visit(viewport={"width": 1180, "height": 1360})
    for move in ("pan left", "zoom out", "rotate clockwise", "zoom in"):
        page.goto(page.url.partition("#")[0])
        start(page, 16, move)
        end_of_stage(page)
    page.locator("#advanced summary").click()
    expect(page.locator("#server-text")).to_contain_text("ready", timeout=20_000)
    page.mouse.move(0, 0)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)  # transitions
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.quantize(256).save(os.environ["PAGE_SCREENSHOT"], optimize=True)
