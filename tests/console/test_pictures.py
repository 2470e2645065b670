"""The page of pictures, and texts that are settled in any order, in a real browser on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from console.conftest import Browser
from frontend.test_serving import Running as RealServer
from masked import small as texts
from pictures import small
from serve.fakes import Running

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    sizes = replace(small.SIZES, in_channels=1)
    out = small.written(tmp_path_factory.mktemp("pictures") / "grey", sizes, labels=["shoe", "dress", "coat"])
    server = RealServer(target=str(out))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    server = RealServer(target=str(texts.written(tmp_path_factory.mktemp("masked") / "words")))
    yield server
    server.stop()


def test_pictures_are_made_side_by_side(painter: RealServer, browser: Browser) -> None:
    browser.open(painter.url)
    browser.wait(lambda: browser.js("location.hash === '#pictures'"), "the view of all that is served")
    browser.wait(lambda: "Makes pictures of 8x8 pixels" in browser.text("#pictures .hint"), "the model")
    assert browser.js("[...document.querySelectorAll('[name=prompt] option')].map(o => o.textContent)") == [
        "anything", "shoe", "dress", "coat",
    ]  # fmt: skip
    browser.js("document.querySelector('#pictures [name=n]').value = 3")
    browser.js("document.querySelector('#pictures [name=steps]').value = 20")
    browser.js("document.querySelector('#pictures [name=seed]').value = 7")
    browser.button("Make").click()
    browser.wait(lambda: browser.text("#announcer") == "3 pictures made.", "the end")
    captions = browser.js("[...document.querySelectorAll('figcaption')].map(f => f.textContent)")
    assert [c.split(" · ")[:2] for c in captions] == [[f"seed {s}", "20 steps"] for s in (7, 8, 9)]
    sizes = browser.js("[...document.querySelectorAll('.tile img')].map(i => [i.naturalWidth, i.complete])")
    assert sizes == [[8, True]] * 3
    sources = browser.js("[...document.querySelectorAll('.tile img')].map(i => i.src)")
    assert len(set(sources)) == 3
    assert browser.js("document.querySelector('.tile img').alt") == "shoe, seed 7"
    assert painter.metric("num_requests_running") == 0


def test_what_is_stopped_stops_and_what_is_wrong_is_told(painter: RealServer, browser: Browser) -> None:
    browser.open(painter.url + "/#pictures")
    browser.wait(lambda: browser.js("document.querySelectorAll('#pictures [name=steps]').length"), "the form")
    browser.js("document.querySelector('#pictures [name=steps]').value = 1000")
    browser.button("Make").click()
    browser.wait(lambda: browser.js("document.querySelector('.tile img').src"), "a preview")
    browser.button("Stop").click()
    browser.wait(lambda: "made." in browser.text("#announcer"), "the end")
    browser.wait(lambda: painter.metric("num_requests_running") == 0, "that nothing runs")
    assert browser.js("document.querySelector('.tile progress').value") > 0


def test_places_are_seen_as_they_settle(writer: RealServer, browser: Browser) -> None:
    browser.open(writer.url)
    browser.wait(lambda: browser.js("!document.querySelector('#model').disabled"), "the model")
    browser.js(
        """(() => {
          window.seen = [];
          new MutationObserver(() => {
            const ahead = document.querySelector(".ahead");
            if (ahead) window.seen.push(ahead.textContent);
          }).observe(document.querySelector("#turns"), { childList: true, subtree: true });
        })()"""
    )
    browser.find("#prompt").send_keys("sort 31 12:")
    browser.button("Send").click()
    browser.wait(lambda: "token" in browser.text(".turn.assistant .stats"), "the end")
    assert any("░" in text for text in browser.js("window.seen"))
    assert browser.js("document.querySelectorAll('.ahead').length") == 0


def test_a_server_without_such_models_says_so(server: Running, browser: Browser) -> None:
    browser.open(server.url + "/#pictures")
    browser.wait(lambda: "No model of pictures is served here" in browser.text("#pictures"), "the words")
