"""A headless Chromium, and a server for it on a fake engine."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from serve.fakes import Running
from serve.test_chat import wait_ready

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


class Browser:
    """What tests need of Selenium's driver, in few words."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str, *, width: int = 1280, height: int = 800, **media: str) -> None:
        """A fresh page: no storage, no log. ``media`` are CSS media features, such as prefers_color_scheme."""
        mobile = width < 600
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.driver.get("about:blank")
        self.driver.execute_cdp_cmd("Storage.clearDataForOrigin", {"origin": url, "storageTypes": "all"})
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(url)
        self.driver.execute_script("sessionStorage.clear()")

    def js(self, code: str, *arguments: object) -> Any:
        """The value of a JavaScript expression."""
        return self.driver.execute_script("return " + code, *arguments)

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        """Text of an element, seen or not; empty if there is none."""
        return self.js("document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def button(self, name: str) -> Any:
        """The visible button with this text."""
        buttons = self.driver.find_elements("xpath", f"//button[normalize-space()='{name}']")
        return next(b for b in buttons if b.is_displayed())

    def keys(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Until something is true; what it is, is said if it never comes."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, f"never came: {what}"
            time.sleep(0.02)

    def leave(self) -> None:
        """Be on no page."""
        self.driver.get("about:blank")

    def complaints(self) -> list[str]:
        """What the console of the page has got since it was opened."""
        return [f"{e['level']}: {e['message']}" for e in self.driver.get_log("browser")]

    def requested(self) -> list[str]:
        """Addresses of all requests since the page was opened."""
        messages = (json.loads(e["message"])["message"] for e in self.driver.get_log("performance"))
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="session")
def _browser() -> Iterator[Browser]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no Chromium here (Debian: apt-get install chromium chromium-driver)")
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(_browser: Browser) -> Iterator[Browser]:
    """A browser whose page must end without a complaint, unless the test has read them."""
    yield _browser
    assert _browser.complaints() == []
    _browser.leave()


@pytest.fixture(scope="module")
def _server() -> Iterator[Running]:
    with Running() as running:
        wait_ready(running)
        yield running


@pytest.fixture
def server(_server: Running) -> Running:
    _server.service.reset()
    return _server
