"""``diastole top``: what a running server does, live in the terminal."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from typing import TYPE_CHECKING, Annotated

import typer

from diastole.types import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from diastole.cli.readings import Reading, Scraper
    from diastole.cli.screen import Screen

LOOK_SECONDS = 0.1  # between looks at the keyboard


def top(
    url: Annotated[str | None, typer.Option(help="of the server; without it, the one on this machine")] = None,
    interval: Annotated[float, typer.Option(min=0.1, max=3600, help="seconds between frames")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="measure for one interval, print one frame, and end")] = False,
    api_key: Annotated[str, typer.Option(help="key to show to the server", show_default=False)] = "",
) -> None:
    """Show what a server does: queue, pages, tokens per second, latencies, promises kept.

    Speeds and latencies are those of the last interval. q or Ctrl-C ends it. Without a terminal it prints one frame.
    """
    from rich.console import Console

    from diastole.cli.readings import Scraper

    own_url, own_key = _own_server()
    console = Console(highlight=False)
    with Scraper(_with_scheme(url or own_url), api_key or ("" if url else own_key)) as scraper:
        if once or not console.is_terminal:
            _print_once(scraper, interval, console)
        else:
            _watch(scraper, interval, console)


def _own_server() -> tuple[str, str]:
    """Address and key of a server that was started here with this environment."""
    from diastole.config import resolve

    server = resolve(None, os.environ, {}).server
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{server.port}", next(iter(server.api_key), "")


def _with_scheme(url: str) -> str:
    return url if "://" in url else f"http://{url}"


def _print_once(scraper: Scraper, interval: float, console: Console) -> None:
    from diastole.cli.readings import NotRead, Window
    from diastole.cli.screen import Screen

    screen = Screen(scraper.url)
    try:
        before = scraper.read()
        time.sleep(interval)
        screen.see(Window(before, scraper.read()))
    except NotRead as e:
        raise UserError(f"{scraper.url}: {e}", param="url") from None
    console.print(screen)


def _watch(scraper: Scraper, interval: float, console: Console) -> None:
    from rich.live import Live

    from diastole.cli.keys import END, Keys
    from diastole.cli.screen import Screen

    screen = Screen(scraper.url, f"every {interval:g} s, q quits")
    inbox: queue.SimpleQueue[Reading | Exception] = queue.SimpleQueue()
    threading.Thread(target=_read_on, args=(scraper, interval, inbox), daemon=True).start()
    before: Reading | None = None
    drawn = console.size
    try:
        with Keys(sys.stdin) as keys, Live(screen, console=console, screen=True, auto_refresh=False) as live:
            while not {"q", END} & set(keys.pressed(LOOK_SECONDS)):
                news = not inbox.empty()
                if news:
                    before = _take(screen, before, inbox.get())
                if news or console.size != drawn:
                    drawn = console.size
                    live.refresh()
    except KeyboardInterrupt:
        return


def _take(screen: Screen, before: Reading | None, got: Reading | Exception) -> Reading | None:
    """Show what came; returns the reading that the next one is compared with."""
    from diastole.cli.readings import Window

    if isinstance(got, Exception):
        screen.fail(f"{got}; trying again")
        return None
    if before is not None:
        screen.see(Window(before, got))
    return got


def _read_on(scraper: Scraper, interval: float, inbox: queue.SimpleQueue[Reading | Exception]) -> None:
    """Read the page again and again, on a thread: a server that hangs must not hold up the keyboard."""
    from diastole.cli.readings import NotRead

    while True:
        try:
            inbox.put(scraper.read())
        except (NotRead, RuntimeError) as e:  # RuntimeError: the client was closed, we end
            inbox.put(e)
        time.sleep(interval)
