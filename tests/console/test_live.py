"""The page of live streams in a real browser, on a real server with a small model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from console.conftest import Browser
from frontend.test_serving import Running as RealServer
from live import small
from serve.fakes import Running

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def brain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    out = tmp_path_factory.mktemp("live") / "brain"
    net = small.classifier()
    net.register_buffer("covariance", torch.eye(5))
    small.written(net, small.classifier_config(), out)
    server = RealServer(target=str(out))
    yield server
    server.stop()


def test_a_signal_plays_and_what_is_found_is_drawn_onto_it(brain: RealServer, browser: Browser) -> None:
    browser.open(brain.url)
    browser.wait(lambda: browser.text("#live h1") == "Live" and browser.js("location.hash === '#live'"), "the view")
    browser.wait(lambda: "ch0, ch1, ch2, ch3, ch4 at 100 Hz" in browser.text("#live .hint"), "the model")
    browser.button("Made-up signal").click()
    browser.wait(lambda: browser.js("document.querySelectorAll('.found li').length") >= 5, "readings")
    assert "label" in browser.text(".found li:last-child")
    assert browser.text(".deadlines strong").endswith("%")
    assert "in time" in browser.text(".deadlines .hint")
    pixels = browser.js(
        """(() => {
          const canvas = document.querySelector(".waves");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let blue = 0, red = 0;
          for (let i = 0; i < data.length; i += 4) {
            if (data[i + 3] < 200) continue;
            if (data[i + 2] > data[i] + 60) blue++;
            if (data[i] > data[i + 2] + 60) red++;
          }
          return [blue, red];
        })()"""
    )
    assert pixels[0] > 500  # waves
    assert pixels[1] > 20  # marks of readings
    browser.button("Stop").click()
    browser.wait(lambda: "Done:" in browser.text("#announcer"), "the end")
    browser.wait(lambda: browser.js("!document.querySelector('#live select').disabled"), "that another can be begun")
    assert brain.metric("num_requests_running") == 0


def test_a_file_plays_and_a_wrong_one_is_told(brain: RealServer, browser: Browser, tmp_path: Path) -> None:
    wrong, right = tmp_path / "wrong.csv", tmp_path / "right.csv"
    wrong.write_text("1,2\n3,4\n")
    rows = "\n".join(",".join(f"{v:.4f}" for v in row) for row in small.noise(160, 5))
    right.write_text("a,b,c,d,e\n" + rows)
    browser.open(brain.url + "/#live")
    browser.wait(lambda: browser.driver.find_elements("css selector", "#live input[type=file]"), "the view")
    browser.find("#live input[type=file]").send_keys(str(wrong))
    browser.wait(lambda: "must hold 5 numbers in each line" in browser.text("#live .trouble"), "the reason")
    browser.find("#live input[type=file]").send_keys(str(right))
    browser.wait(lambda: "Done:" in browser.text("#announcer"), "the end")
    found = browser.js("document.querySelectorAll('.found li').length")
    assert found == len(np.arange(125, 161, 25)) + 1  # windows of 1.01 s every 0.25 s, and what is left at the end


def test_a_server_without_such_models_says_so(server: Running, browser: Browser) -> None:
    browser.open(server.url + "/#live")
    browser.wait(lambda: "No model of live input is served here" in browser.text("#live"), "the words")
