"""The live view of the engine in a real browser: on a fake engine with a past of its own, and on a real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from console.conftest import Browser
from diastole.engine.trace import StreamView, Trace, granted
from diastole.types import SLO, Event, Grant, Request, Stream
from frontend.test_serving import Running as RealServer
from models.common import embedded
from serve import fakes
from serve.test_chat import wait_ready

pytestmark = pytest.mark.browser

NOW = 100.0  # seconds on the fake engine's clock
RIGHT, LEFT, DOWN, ESCAPE = "\ue014", "\ue012", "\ue015", "\ue00c"

LANE = 24  # pixels

# Pixels of the timeline, or of some of its height, that are nearer to one of its two colours than to anything else that
# is drawn.
PIXELS = """
((top, height) => {
  const canvas = document.querySelector(".frame canvas");
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", { willReadFrequently: true });
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, top ?? 0, canvas.width, height ?? canvas.height);
  let prefill = 0, decode = 0;
  for (let i = 0; i < data.length; i += 4) {
    if (data[i + 3] < 255) continue;
    if (data[i + 2] > data[i] + 60) prefill++;
    if (data[i] > data[i + 2] + 60) decode++;
  }
  return [prefill, decode];
})(...arguments)
""".strip()


@pytest.fixture
def server(browser: Browser) -> Iterator[fakes.Running]:
    """A server of its own, whose engine ran for the last seconds: a prompt in two chunks, then four tokens."""
    with fakes.Running() as running:
        wait_ready(running)
        running.backend.now = NOW
        stream = Stream(Request("chatcmpl-0badcafe", "echo", None, None), 0, known=300)
        for i, n in enumerate((256, 44, 1, 1, 1, 1)):
            ran(running, stream, NOW - 5 + 0.5 * i, n, said=int(i > 0))
        yield running
        browser.leave()  # or the page would go on asking when the server is gone


def ran(server: fakes.Running, stream: Stream, began: float, units: int, said: int) -> None:
    """A step of a quarter of a second, for one stream."""
    works = granted([Grant(stream, units)])
    events = [Event(stream.req.id, stream.index, None, False, began + 0.25, units=said)] if said else []
    server.backend.steps.ran("echo", began, 0.25, works, events)
    stream.done += said if works[0][2] == "decode" else units
    if said:
        stream.emitted_at, stream.known = began + 0.25, stream.known + said


def watch(browser: Browser, server: fakes.Running, **how: object) -> None:
    browser.open(server.url + "/#engine", **how)  # type: ignore[arg-type]
    browser.wait(lambda: server.backend.watched, "the first look at the trace")


def test_bars_show_each_step(browser: Browser, server: fakes.Running) -> None:
    watch(browser, server)
    browser.wait(lambda: min(browser.js(PIXELS)) > 100, "bars of both kinds")
    prefill, decode = browser.js(PIXELS)
    assert prefill > decode / 2  # half as many, but higher
    browser.find(".frame canvas").send_keys(RIGHT)
    assert (
        browser.text("#bar-words") == "Stream 0badcafe: decode of 1 token in 250\u00a0ms; step 6 of echo ran 1 stream."
    )
    browser.keys(*[LEFT] * 4)
    assert (
        browser.text("#bar-words")
        == "Stream 0badcafe: prefill of 44 tokens in 250\u00a0ms; step 2 of echo ran 1 stream."
    )
    assert browser.text(".tip").startswith("prefill · 44 tokens")
    browser.keys(DOWN, ESCAPE)
    assert browser.js("document.querySelector('.tip').hidden")
    assert all(url.startswith((server.url, "data:")) for url in browser.requested())


def table(browser: Browser) -> list[list[str]]:
    """Rows of the streams' table that are seen, its head first."""
    return browser.js(
        """[...document.querySelectorAll(".streams tr")].map(
          (r) => [...r.children].filter((c) => !c.hidden).map((c) => c.textContent))"""
    )


def test_guesses_show_how_many_were_right(browser: Browser, server: fakes.Running) -> None:
    watch(browser, server)
    browser.wait(lambda: min(browser.js(PIXELS)) > 100, "bars of both kinds")
    assert not browser.find(".key.guess").is_displayed()
    stream = Stream(Request("chatcmpl-guessing", "echo", None, None), 0, known=300, done=299, emitted_at=NOW - 5)
    for i, said in enumerate((8, 5, 1)):
        ran(server, stream, NOW - 3 + 0.5 * i, 8, said)
    slo = SLO()
    server.backend.streams = [
        StreamView("0badcafe", 0, True, 304, 303, NOW - 6, NOW - 4.25, NOW, slo),
        StreamView("guessing", 0, True, 314, 313, NOW - 6, NOW - 5, NOW, slo, 1021, 11),
    ]
    browser.wait(lambda: browser.find(".key.guess").is_displayed(), "the legend")
    browser.wait(lambda: len(table(browser)) == 3, "both streams")
    browser.button("Pause").click()
    head, *rows = table(browser)
    assert head[-1] == "Drafts"
    assert [row[-1] for row in rows] == ["–", "11 of 1,021 guesses right"]
    browser.find(".frame canvas").send_keys(DOWN)
    browser.keys(DOWN, *[RIGHT] * 3)
    told = []
    for _ in range(3):
        told.append((browser.text("#bar-words").split(" in ")[0], browser.text(".tip strong")))
        browser.keys(LEFT)
    assert told == [
        (f"Stream guessing: decode of 8 rows, {tokens}", f"decode · 8 rows, {tokens}")
        for tokens in ("1 token", "5 tokens", "8 tokens")
    ]
    # Three bars in which 14 rows of 24 are filled, below four full ones.
    _, plain = browser.js(PIXELS, 0, LANE)
    _, guessed = browser.js(PIXELS, LANE, LANE)
    assert guessed / plain == pytest.approx(3 / 4 * 14 / 24, abs=0.08)


def test_a_finger_finds_a_bar(browser: Browser, server: fakes.Running) -> None:
    watch(browser, server, width=360)
    browser.wait(lambda: min(browser.js(PIXELS)) > 30, "bars")
    browser.button("Pause").click()
    browser.js(
        """(() => {
          const canvas = document.querySelector(".frame canvas");
          const box = canvas.getBoundingClientRect();
          const at = (x) => ({ clientX: box.left + x, clientY: box.top + 12, pointerType: "touch" });
          for (let x = 74; x < box.width && document.querySelector(".tip").hidden; x++)
            canvas.dispatchEvent(new PointerEvent("pointerdown", at(x)));
        })()"""
    )
    assert "prefill of 256 tokens" in browser.text("#bar-words")
    tip = browser.find(".tip").rect
    assert tip["x"] >= 0
    assert tip["x"] + tip["width"] <= 360


def polls_in(browser: Browser, server: fakes.Running, seconds: float) -> int:
    before = len(server.backend.watched)
    browser.driver.execute_async_script("setTimeout(arguments[1], arguments[0] * 1000)", seconds)
    return len(server.backend.watched) - before


def test_it_looks_only_while_it_is_seen(browser: Browser, server: fakes.Running) -> None:
    watch(browser, server)
    browser.wait(lambda: server.backend.watched[-1] == 6, "a question for what is new only")
    assert polls_in(browser, server, 1.6) <= 4
    browser.button("Pause").click()
    polls_in(browser, server, 0.3)  # one may be on its way
    assert polls_in(browser, server, 1.2) == 0
    browser.button("Go on").click()
    assert polls_in(browser, server, 1.2) > 0
    browser.find("[data-view=chat]").click()
    polls_in(browser, server, 0.3)
    assert polls_in(browser, server, 1.2) == 0


def test_promises_are_judged_in_words(browser: Browser, server: fakes.Running) -> None:
    slo = SLO(first=2.0, gap=0.3)
    server.backend.streams = [
        StreamView("0badcafe", 0, True, 304, 303, NOW - 6.0, NOW - 4.25, NOW, slo),
        StreamView("11111111", 1, False, 1000, 0, NOW - 3.0, None, NOW - 1.0, slo),
    ]
    watch(browser, server)
    browser.wait(lambda: browser.text(".streams tbody"), "the streams")
    head, *rows = table(browser)
    assert head == ["Stream", "Absorbed", "First token", "Between tokens"]  # nothing was guessed
    nb = "\u00a0"
    assert rows == [
        ["0badcaferunning", "303 of 304", f"1.75{nb}sclosepromised{nb}2{nb}s", f"500{nb}mslatepromised{nb}300{nb}ms"],
        ["11111111·1waiting", "0 of 1,000", f"not yet, 3{nb}slatepromised{nb}2{nb}s", "–"],
    ]
    assert browser.text(".totals").startswith("Tokens per second")
    assert "0 of 16 pages" in browser.text(".pages")


def test_an_engine_that_begins_anew(browser: Browser, server: fakes.Running) -> None:
    watch(browser, server)
    browser.wait(lambda: server.backend.watched[-1] == 6, "the old steps")
    fresh = Trace()
    fresh.ran("echo", NOW - 1, 0.1, granted([Grant(Stream(Request("new", "echo", None, None), 0, known=5), 5)]), ())
    server.backend.steps = fresh
    browser.wait(lambda: server.backend.watched[-1] == 1, "the new numbers")
    browser.find(".frame canvas").send_keys(RIGHT)
    assert browser.text("#bar-words").startswith("Stream new: prefill of 5 tokens")


def test_an_engine_that_is_gone_is_told(browser: Browser, server: fakes.Running) -> None:
    watch(browser, server)
    server.backend.dead = True
    browser.wait(lambda: "The engine has ended" in browser.text(".trouble"), "the news")
    server.backend.dead = False
    browser.wait(lambda: browser.text(".trouble") == "", "its return")
    assert [c for c in browser.complaints() if "503" not in c] == []


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_calm_pages_do_not_move_by_themselves(browser: Browser, server: fakes.Running, motion: str) -> None:
    watch(browser, server, prefers_reduced_motion=motion)
    browser.wait(lambda: len(server.backend.watched) > 1, "polls")
    frames = browser.driver.execute_async_script(
        """
        const done = arguments[0], real = requestAnimationFrame;
        let frames = 0;
        window.requestAnimationFrame = (f) => (frames++, real(f));
        setTimeout(() => done(frames), 800);
        """
    )
    assert (frames == 0) == (motion == "reduce")


@pytest.mark.model
@pytest.mark.slow
def test_the_real_engine_at_work(browser: Browser) -> None:
    embedded()
    server = RealServer()
    try:
        browser.open(server.url + "/#engine")
        browser.wait(lambda: "Nothing has run" in browser.text(".empty"), "the empty state")
        browser.wait(lambda: not browser.js("document.getElementById('model').disabled"), "models")
        browser.button("Run an example").click()
        browser.wait(lambda: min(browser.js(PIXELS)) > 100, "bars of both kinds")
        browser.wait(lambda: browser.js("document.querySelectorAll('.streams tbody tr').length") == 3, "three streams")
        browser.wait(lambda: browser.text(".streams").count("you") == 3, "that they are ours")
        browser.wait(lambda: float(browser.text(".totals dd").replace("–", "0")) > 0, "tokens per second")
        browser.button("Stop the example").click()
        browser.wait(lambda: server.metric("num_requests_running") == 0, "the end of all streams")
        browser.find("[data-view=chat]").click()
        browser.find("#settings [name=max_tokens]").send_keys("40")  # a small model may go on and on
        browser.find("#prompt").send_keys("What is 2+2?\ue007")
        browser.wait(lambda: "first token after" in browser.text(".assistant .stats"), "an answer")
        assert browser.text(".assistant .text").strip()
        assert all(url.startswith((server.url, "data:")) for url in browser.requested())
    finally:
        server.stop()
