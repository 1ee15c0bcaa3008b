"""The page in a real browser: what is held moves the picture, and undo, forks, clips and tabs do what they say."""

import json
import shutil
import time

import pytest
from support.play import make_table, serving

from worldvq.media.videos import probe_video

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="the page's tests need playwright: pip install playwright"
)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="the page's tests need a browser: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def port():
    with serving(make_table()) as port:
        yield port


class Tab:
    """A tab with the page in it, and what it said and sent."""

    def __init__(self, browser, port, **context):
        self.context = browser.new_context(accept_downloads=True, **context)
        self.page, self.sent, self.problems = self.context.new_page(), [], []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda said: self.problems.append(said.text) if said.type == "error" else None)
        self.page.on("websocket", lambda socket: socket.on("framesent", lambda text: self.sent.append(text)))
        self.page.goto(f"http://127.0.0.1:{port}/")
        self.begun()

    def begun(self):
        self.page.wait_for_selector("#status.live")
        self.until(lambda: self.page.evaluate("document.getElementById('dream').width") == 24)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.context.close()
        if error == (None, None, None):
            assert self.problems == []

    def until(self, true, seconds=60):
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, (self.page.inner_text("body"), self.sent, self.problems)
            self.page.wait_for_timeout(10)  # what has come meanwhile is heard only in here

    def picture(self, canvas="dream"):
        return self.page.evaluate(f"document.getElementById('{canvas}').toDataURL()")

    def steps(self):
        return int(self.page.inner_text("#step"))

    def actions(self):
        return [message["action"] for message in map(json.loads, self.sent) if message["kind"] == "act"]

    def lit(self):
        return [text.split("\n")[0] for text in self.page.locator("#actions .lit").all_inner_texts()]


def test_a_held_key_moves_the_picture_and_undo_brings_the_old_one_back(browser, port):
    with Tab(browser, port) as tab:
        keyboard, first = tab.page.keyboard, tab.picture()
        keyboard.down("ArrowRight")
        assert tab.lit() == ["right"]
        tab.until(lambda: tab.steps() >= 5)
        keyboard.up("ArrowRight")
        assert tab.lit() == []
        keyboard.press("p")
        assert tab.page.inner_text("#pause") == "Run"
        assert tab.actions()[:5] == [2] * 5
        tab.page.wait_for_timeout(200)  # a step may be on its way
        steps, before = tab.steps(), tab.picture()
        assert before != first
        tab.page.click("#one")
        tab.until(lambda: tab.steps() == steps + 1)
        assert tab.actions()[-1] == 1  # stay, where nothing is held
        tab.page.keyboard.press("Backspace")
        tab.until(lambda: tab.steps() == steps)
        assert tab.picture() == before
        while tab.steps():
            at = tab.steps()
            tab.page.click("#undo")
            tab.until(lambda at=at: tab.steps() < at)
        assert tab.picture() == first and tab.page.is_disabled("#undo")


def test_time_runs_from_the_first_key_on_and_stands_still_when_paused(browser, port):
    with Tab(browser, port) as tab:
        tab.page.wait_for_timeout(300)
        assert tab.steps() == 0  # nobody is there yet
        tab.page.keyboard.press("ArrowLeft")
        tab.until(lambda: tab.steps() >= 4)
        assert tab.actions()[:4] == [0, 1, 1, 1]  # a tap is one step, however short
        tab.page.keyboard.press("p")
        tab.page.wait_for_timeout(300)
        steps = tab.steps()
        tab.page.wait_for_timeout(300)
        assert tab.steps() == steps
        tab.page.keyboard.press("ArrowLeft")
        tab.until(lambda: tab.steps() == steps + 1)


def test_a_clip_is_saved_and_plays(browser, port, tmp_path):
    with Tab(browser, port) as tab:
        for step in range(4):
            tab.page.click("#one")
            tab.until(lambda step=step: tab.steps() == step + 1)
        with tab.page.expect_download() as saving:
            tab.page.keyboard.press("c")
        saving.value.save_as(tmp_path / "clip.mp4")
        assert probe_video(tmp_path / "clip.mp4")[0] == 5
        tab.until(lambda: tab.page.evaluate("document.getElementById('video').duration") > 0)


def test_reloading_begins_anew_and_tabs_know_nothing_of_each_other(browser, port):
    with Tab(browser, port) as tab, Tab(browser, port) as other:
        first = tab.picture()
        assert other.picture() == first
        tab.page.keyboard.down("ArrowRight")
        tab.until(lambda: tab.steps() >= 3)
        assert (other.steps(), other.picture()) == (0, first)
        other.page.click("#one")
        other.until(lambda: other.steps() == 1)
        tab.page.keyboard.up("ArrowRight")
        tab.page.reload()
        tab.begun()
        assert (tab.steps(), tab.picture()) == (0, first) and other.steps() == 1


def test_forks_thumbnails_temperature_and_uncertainty(browser, port):
    with Tab(browser, port) as tab:
        page = tab.page
        page.click("#fork-go")
        page.wait_for_selector("#branches button:enabled")
        assert page.locator("#branches button").count() == 3
        page.locator("#branches button").nth(2).click()
        tab.until(lambda: tab.steps() == 8)
        page.locator("#starts button").nth(1).click()
        tab.until(lambda: tab.steps() == 0)
        page.keyboard.press("o")
        page.locator("#temperature").fill("0.3")
        page.click("#one")
        tab.until(lambda: page.is_visible("#entropy"))
        assert page.inner_text("#unsure").endswith("nats")
        sent = [json.loads(message) for message in tab.sent]
        plans = {"kind": "what_if", "actions": [0, 1, 2], "steps": 8}
        wanted = [plans, {"kind": "take", "branch": 2}, {"kind": "begin", "start": 1}, {"kind": "overlay", "on": True}]
        assert sent == [*wanted, {"kind": "temperature", "value": 0.3}, {"kind": "act", "action": 1}]


def test_several_keys_at_once_where_an_action_has_several_parts(browser):
    with serving(make_table("multi_discrete")) as port, Tab(browser, port) as tab:
        tab.page.keyboard.press("p")
        tab.page.keyboard.press("p")  # paused: a press is a step
        tab.page.keyboard.down("2")
        tab.page.keyboard.down("3")
        tab.until(lambda: [2, 1] in tab.actions())
        assert tab.lit() == ["factor 1 2", "factor 2"]
        tab.page.keyboard.up("2")
        tab.page.keyboard.up("3")


def test_sliders_where_an_action_is_numbers(browser):
    with serving(make_table("box")) as port, Tab(browser, port) as tab:
        tab.page.locator("#actions input").nth(0).fill("-0.5")
        tab.until(lambda: [-0.5, 0] in tab.actions())
        tab.page.keyboard.press("p")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_is_wide_enough_and_fingers_do_what_keys_do(browser, port, scheme):
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "color_scheme": scheme}
    with Tab(browser, port, **phone) as tab:
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360
        tab.page.locator("#actions button").nth(2).tap()
        tab.until(lambda: tab.actions()[:1] == [2])
        tab.page.locator("#pause").tap()
        heights = tab.page.evaluate("[...document.querySelectorAll('#actions button')].map(b => b.offsetHeight)")
        assert min(heights) >= 44
        style = "getComputedStyle(document.body).backgroundColor"
        red = int(tab.page.evaluate(style).removeprefix("rgb(").split(",")[0])
        assert (red > 128) == (scheme == "light")


def test_a_server_that_is_gone_is_said(browser):
    with serving(make_table()) as port:
        tab = Tab(browser, port)
    tab.until(lambda: "reload" in tab.page.inner_text("#status"))
    tab.context.close()
