"""Takes the console's pictures in docs/images from a server that runs: python tools/screenshots.py URL"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from console.conftest import Browser, chromium  # noqa: E402

QUESTION = "Write a Python function that adds two numbers, and explain it in a short list."
SIZES = {"light": (1280, 800), "dark": (1280, 800), "phone": (360, 740)}


def main(url: str) -> None:
    """Chat in light, dark and on a phone, and the engine at work."""
    with chromium() as browser:
        for name, (width, height) in SIZES.items():
            scheme = "dark" if name == "dark" else "light"
            browser.open(url, width=width, height=height, prefers_color_scheme=scheme)
            chat(browser)
            save(browser, name)
        browser.open(url + "/#engine", width=1280, height=880, prefers_color_scheme="dark")
        ready(browser)
        browser.wait(lambda: browser.find(".empty").is_displayed(), "an engine at rest")
        browser.button("Run an example").click()
        browser.wait(lambda: browser.js("document.querySelectorAll('.streams tbody tr').length") == 3, "three streams")
        browser.wait(
            lambda: browser.js("document.querySelectorAll('.streams tr.ended').length") == 1, "the long one's end"
        )
        browser.find(".frame canvas").send_keys("\ue012\ue015\ue015")  # a bar of the last lane
        save(browser, "engine")


def ready(browser: Browser) -> None:
    browser.wait(lambda: not browser.js("document.getElementById('model').disabled"), "models")


def chat(browser: Browser) -> None:
    ready(browser)
    for name, value in {"temperature": "0.2", "seed": "7", "max_tokens": "260"}.items():
        browser.js("document.forms.settings.elements[arguments[0]].value = arguments[1]", name, value)
    browser.find("#prompt").send_keys(QUESTION + "\ue007")
    browser.wait(lambda: browser.text(".assistant .stats"), "the answer")


def save(browser: Browser, name: str) -> None:
    browser.driver.save_screenshot(str(ROOT / "docs" / "images" / f"console-{name}.png"))


if __name__ == "__main__":
    main(sys.argv[1])
