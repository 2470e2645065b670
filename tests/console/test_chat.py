"""The chat in a real browser, in front of a fake model that says what it is told."""

from __future__ import annotations

import json

import pytest

from console.conftest import Browser
from serve.fakes import FakeBackend, FakeService, Running
from serve.test_chat import wait_ready

pytestmark = pytest.mark.browser

ENTER, ESCAPE, TAB, SHIFT = "\ue007", "\ue00c", "\ue004", "\ue008"


def start(browser: Browser, server: Running, **how: object) -> None:
    browser.open(server.url, **how)  # type: ignore[arg-type]
    browser.wait(lambda: not browser.js("document.getElementById('model').disabled"), "models")


def write(browser: Browser, *lines: str) -> None:
    """A message of several lines; it is put in at once, as a paste does, and sent with the key."""
    browser.js("document.getElementById('prompt').value = arguments[0]", "\n".join(lines))
    browser.find("#prompt").send_keys(ENTER)


def ended(browser: Browser) -> bool:
    return bool(browser.js("document.getElementById('stop').hidden && !document.querySelector('.busy')"))


def answered(browser: Browser) -> str:
    browser.wait(lambda: ended(browser) and browser.text(".assistant"), "the end of the answer")
    return browser.text(".assistant .text")


def test_an_answer_streams_and_tells_its_figures(browser: Browser, server: Running) -> None:
    start(browser, server)
    server.service.pace = 0.05
    write(browser, "A quite ordinary question, forty bytes long")
    browser.wait(lambda: 0 < len(browser.text(".assistant .text")) < 30, "a part of the answer")
    assert answered(browser) == "A quite ordinary question, forty bytes long"
    figures = browser.text(".assistant .stats")
    assert figures.startswith("43 tokens · ")
    assert "tokens/s · first token after" in figures
    assert browser.text("#announcer") == "A quite ordinary question, forty bytes long"
    assert all(url.startswith((server.url, "data:")) for url in browser.requested())


def test_stop_and_escape_end_the_work_on_the_server(browser: Browser, server: Running) -> None:
    start(browser, server)
    server.service.endless, server.service.pace = True, 0.005
    for times, end in enumerate((lambda: browser.button("Stop").click(), lambda: browser.keys(ESCAPE)), 1):
        write(browser, "Go on")
        browser.wait(lambda: "xxx" in browser.text(".turn.busy .text"), "some of an endless answer")
        end()
        browser.wait(lambda: len(server.service.aborted) == times, "the abort")  # noqa: B023
        browser.wait(lambda: ended(browser), "the end")
    assert "stopped by you" in browser.text(".turn:last-child .stats")
    assert "about" in browser.text(".turn:last-child .stats")  # nobody said how many tokens it were


TABLE = {"div", "table", "thead", "tbody", "tr", "th", "td"}
HOSTILE = [
    "<img src=x onerror=\"document.title='owned'\"> <script>document.title='owned'</script>",
    "",
    "[a](javascript:document.title='owned') [b](https://example.org/b) [c](data:text/html,x)",
    "",
    "```html",
    "</code></pre><img src=x onerror=alert(1)>",
    "```",
    "",
    "| <b>x</b> | **y** |",
    "|---|--:|",
    "| `<i>` | 2 |",
]


def test_markup_of_models_stays_text(browser: Browser, server: Running) -> None:
    start(browser, server)
    write(browser, *HOSTILE)
    answered(browser)
    inside = browser.js("[...document.querySelectorAll('#turns .text *')].map((e) => e.localName)")
    assert set(inside) == {"p", "a", "figure", "figcaption", "span", "button", "pre", "code", *TABLE, "strong"}
    assert HOSTILE[0] in browser.text(".assistant .text")
    assert browser.js("[...document.querySelectorAll('#turns a')].map((a) => a.href)") == ["https://example.org/b"]
    assert browser.text(".assistant pre code") == HOSTILE[5]
    assert browser.js("document.title") == "Diastole"
    assert browser.text(".assistant tbody td:last-child") == "2"


MARKDOWN = """\
# Title

Some *soft*, **strong** and `code *not soft*`; snake_case_name, 2 * 3 * 4.

1. one
2. two
   - inner
   - other

> quoted
> twice

***

See https://example.org/x."""


def test_markdown(browser: Browser, server: Running) -> None:
    start(browser, server)
    write(browser, *MARKDOWN.split("\n"))
    answered(browser)
    shown = browser.js("document.querySelector('.assistant .text').innerHTML")
    assert shown == (
        "<h3>Title</h3><p>Some <em>soft</em>, <strong>strong</strong> and <code>code *not soft*</code>; "
        'snake_case_name, 2 * 3 * 4.</p><ol start="1"><li>one</li>'
        "<li>two<ul><li>inner</li><li>other</li></ul></li></ol>"
        "<blockquote><p>quoted<br>twice</p></blockquote><hr>"
        '<p>See <a href="https://example.org/x" target="_blank" rel="noopener noreferrer nofollow">'
        "https://example.org/x</a>.</p>"
    )


@pytest.mark.parametrize("piece", ["*a ", "[", "`", "| ", "#", "> ", "- ", " ", "**", "_a", "1. ", "\\", "[a](", "*_~"])
def test_no_text_holds_up_the_page(browser: Browser, server: Running, piece: str) -> None:
    """Marks that nothing closes must not each be searched for to the end, and there are more lines here than a call
    takes arguments."""
    start(browser, server)
    took = browser.driver.execute_async_script(
        """
        const [piece, done] = arguments;
        import("/console/markdown.js").then(({ render }) => {
          const root = document.createElement("div");
          const began = performance.now();
          for (const end of ["", "\\n"]) render(root, (piece + end).repeat(32000));
          done(performance.now() - began);
        }).catch((error) => done(String(error)));
        """,
        piece,
    )
    assert isinstance(took, float | int), took
    assert took < 10_000  # milliseconds; it takes some hundreds


def test_blocks_that_are_complete_are_left_alone(browser: Browser, server: Running) -> None:
    """Somebody may have selected text in them."""
    start(browser, server)
    same = browser.driver.execute_async_script(
        """
        const done = arguments[0];
        import("/console/markdown.js").then(({ render }) => {
          const root = document.createElement("div");
          render(root, "first\\n\\nsec");
          const [first, second] = root.children;
          render(root, "first\\n\\nsecond\\n\\n- third");
          done([root.children[0] === first, root.children[1] === second, root.textContent]);
        });
        """
    )
    assert same == [True, False, "firstsecondthird"]


def test_settings_are_sent_and_wrong_ones_are_not(browser: Browser, server: Running) -> None:
    start(browser, server)
    fields = {"system": "Be brief", "temperature": "0.3", "top_p": "0.9", "max_tokens": "7", "seed": "11"}
    for name, value in fields.items():
        browser.find(f"#settings [name={name}]").send_keys(value)
    browser.find("#settings [name=stop]").send_keys("END" + SHIFT + ENTER + SHIFT + "two words")
    write(browser, "Hello")
    answered(browser)
    (asked,) = server.service.asked
    params = asked.params
    assert (params.temperature, params.top_p, params.max_tokens, params.seed) == (0.3, 0.9, 7, 11)
    assert list(params.stop) == ["END", "two words"]
    assert bytes(i for i in asked.prompt if i < 256) == b"Be brief\nHello"
    assert "cut at the limit of tokens" in browser.text(".assistant .stats")
    browser.driver.refresh()
    browser.wait(lambda: browser.text(".assistant .text") == "Be brie", "the conversation after a reload")
    assert browser.find("#settings [name=seed]").get_attribute("value") == "11"
    browser.js("document.forms.settings.elements.top_p.value = 7")
    write(browser, "Never sent")
    assert browser.js("document.activeElement.name") == "top_p"
    assert len(server.service.asked) == 1


def test_edit_regenerate_and_new(browser: Browser, server: Running) -> None:
    start(browser, server)
    write(browser, "First")
    answered(browser)
    browser.button("Edit").click()
    assert browser.find("#prompt").get_attribute("value") == "First"
    write(browser, "Second")
    browser.wait(lambda: browser.text(".assistant .text") == "Second", "the answer to what was edited")
    assert browser.js("document.querySelectorAll('.turn').length") == 2
    browser.button("Regenerate").click()
    browser.wait(lambda: len(server.service.asked) == 3 and ended(browser), "the answer once more")
    assert server.service.asked[2].prompt == server.service.asked[1].prompt
    kept = json.loads(browser.js("localStorage.getItem('diastole.turns')"))
    assert [t["content"] for t in kept] == ["Second", "Second"]
    browser.button("New chat").click()
    assert "Ask something" in browser.text("#turns")
    assert browser.js("localStorage.getItem('diastole.turns')") == "[]"


def test_errors_are_said_and_can_be_tried_again(browser: Browser, server: Running) -> None:
    start(browser, server)
    server.service.fault_after = 3
    write(browser, "Will it fail?")
    answered(browser)
    assert browser.text(".error p").startswith("An internal error happened.")
    assert "secret" not in browser.text("body")
    server.service.fault_after = None
    browser.button("Try again").click()
    browser.wait(lambda: ended(browser) and browser.text(".assistant .text") == "Will it fail?", "the second try")
    assert browser.js("document.querySelector('.error').hidden")
    write(browser, "x" * 5000)
    browser.wait(lambda: "context" in browser.text(".turn:last-child .error"), "the refusal")
    assert [c for c in browser.complaints() if "400" not in c] == []  # Chromium notes refused requests itself


def test_a_server_that_is_gone(browser: Browser) -> None:
    with Running() as server:
        wait_ready(server)
        start(browser, server)
    write(browser, "Anybody?")
    browser.wait(lambda: "cannot be reached" in browser.text(".assistant .error"), "the news")
    browser.complaints()


def test_a_question_without_an_answer_is_not_sent_again(browser: Browser, server: Running) -> None:
    """Many models take questions and answers by turns only."""
    start(browser, server)
    server.service.fault_after = 0
    write(browser, "Lost")
    browser.wait(lambda: ended(browser) and browser.text(".assistant .error"), "the fault")
    server.service.fault_after = None
    write(browser, "Found")
    browser.wait(lambda: browser.text(".turn:last-child .text") == "Found", "the answer")
    assert [c for c in browser.complaints() if "500" not in c] == []


def test_model_picker(browser: Browser) -> None:
    with Running(FakeBackend(FakeService("one", ()), FakeService("two", ()))) as server:
        wait_ready(server)
        start(browser, server)
        assert browser.js("[...document.getElementById('model').options].map((o) => o.value)") == ["one", "two"]
        browser.find("#model").send_keys("two")
        write(browser, "Hello")
        answered(browser)
        assert [len(s.asked) for s in server.backend.all] == [0, 1]
        browser.find("[data-view=try]").click()
        assert '"model":"two"' in browser.text("#try pre")
        browser.driver.refresh()
        browser.wait(lambda: browser.js("document.getElementById('model').value") == "two", "the kept choice")
        assert "Try it" in browser.js("document.title")


def test_a_model_that_is_still_loading(browser: Browser) -> None:
    backend = FakeBackend(loading=True)
    with Running(backend) as server:
        browser.open(server.url)
        browser.wait(lambda: "loading" in browser.text("#model"), "the news")
        backend.finish_loading()
        browser.wait(lambda: browser.text("#model").startswith("echo"), "the models")
        assert [c for c in browser.complaints() if "503" not in c] == []


def test_the_key_is_asked_for_and_kept_for_the_tab_only(browser: Browser) -> None:
    with Running(api_key=("right",)) as server:
        wait_ready(server)
        browser.open(server.url)
        browser.wait(lambda: not browser.js("document.getElementById('key').hidden"), "the key field")
        assert browser.js("document.activeElement.id") == "key-field"
        browser.keys("wrong" + ENTER)
        browser.wait(lambda: "did not take" in browser.text("#key-hint"), "the refusal")
        browser.keys("right" + ENTER)
        browser.wait(lambda: not browser.js("document.getElementById('model').disabled"), "models")
        assert browser.js("document.getElementById('key').hidden")
        write(browser, "Hello")
        assert answered(browser) == "Hello"
        assert "right" not in browser.js("JSON.stringify(localStorage)")
        browser.find("[data-view=try]").click()
        assert "$DIASTOLE_API_KEY" in browser.text("#try")
        assert [c for c in browser.complaints() if "401" not in c] == []


def test_keyboard_only(browser: Browser, server: Running) -> None:
    start(browser, server)
    browser.keys(TAB)
    assert browser.js("document.activeElement.className") == "skip"
    browser.keys(ENTER)
    assert browser.js("document.activeElement.id") == "main"
    visited = []
    for _ in range(30):
        browser.keys(TAB)
        visited.append(browser.js("document.activeElement.id || document.activeElement.textContent"))
        seen = browser.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert seen or visited[-1] == "prompt", f"the focus does not show on {visited[-1]}"
        if visited[-1] == "prompt":
            break
    browser.keys("Hello", SHIFT + ENTER + SHIFT, "there", ENTER)
    assert answered(browser) == "Hello\nthere".replace("\n", "")
    assert server.service.asked[0].prompt[1:] == list(b"Hello\nthere")
    assert browser.js("document.activeElement.id") == "prompt"


def test_light_dark_and_the_switch(browser: Browser, server: Running) -> None:
    def paper() -> str:
        return str(browser.js("getComputedStyle(document.body).backgroundColor"))

    start(browser, server, prefers_color_scheme="light")
    light = paper()
    start(browser, server, prefers_color_scheme="dark")
    dark = paper()
    assert light != dark
    browser.find("#theme").click()
    assert (browser.text("#theme"), paper()) == ("◐ Light", light)
    browser.driver.refresh()
    assert paper() == light
    browser.find("#theme").click()
    assert (browser.text("#theme"), paper()) == ("◐ Dark", dark)


CONTRAST = """
(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = (c) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = parse(c).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return getComputedStyle(e).backgroundColor;
    }
  };
  const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  const poor = [];
  for (const e of document.body.querySelectorAll("*")) {
    if (!own(e) || !e.checkVisibility() || e.disabled || e.closest("select")) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(`${e.localName}.${e.className} ${e.textContent.slice(0, 20)}: ${ratio.toFixed(2)}`);
  }
  return poor;
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(browser: Browser, server: Running, scheme: str) -> None:
    """4.5 to 1, as WCAG's level AA asks."""
    start(browser, server, prefers_color_scheme=scheme)
    write(browser, "Some `code`, [a link](https://example.org)", "", "```", "x", "```", "> quote")
    answered(browser)
    for view in ("chat", "engine", "try"):
        browser.find(f"[data-view={view}]").click()
        assert browser.js(CONTRAST.strip()) == []


@pytest.mark.parametrize("width", [360, 768, 1280, 2560])
def test_no_width_scrolls_sideways(browser: Browser, server: Running, width: int) -> None:
    start(browser, server, width=width)
    write(browser, "```", "x" * 300, "```", "y" * 300, "", *("|" + "wide cell|" * 9, "|" + "-|" * 9))
    answered(browser)
    for view in ("chat", "engine", "try"):
        browser.find(f"[data-view={view}]").click()
        wide = browser.js(
            "[document, ...document.querySelectorAll('.turns, .page, .side')].map((e) => e.documentElement ?? e)"
            ".filter((e) => e.scrollWidth > e.clientWidth).map((e) => e.className || e.localName)"
        )
        assert wide == []
    if width < 600:
        browser.find("[data-view=chat]").click()
        assert not browser.find("#settings").is_displayed()
        browser.button("Settings").click()
        assert browser.find("#settings").is_displayed()
