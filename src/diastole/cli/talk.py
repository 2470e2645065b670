"""The conversation behind ``diastole chat``: who answers, and how it looks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from diastole.cli.flow import Flow
from diastole.config import Config
from diastole.params import SamplingParams
from diastole.types import UserError

HELP = """\
/reset           forget the conversation
/system [TEXT]   set the instructions that stand before it; without text: show them
/params          show the sampling parameters
/set NAME VALUE  change one, e.g. /set temperature 0.2
/save FILE       write the conversation as JSON
/quit            leave (as Ctrl-D)"""


class Voice(Protocol):
    """Whoever answers."""

    name: str

    def answer(self, messages: list[dict[str, str]], params: SamplingParams) -> Iterator[tuple[str, int]]:
        """Pieces of text, each with the number of tokens so far. Leaving the iterator early stops the answer."""
        ...

    def close(self) -> None: ...


class Local:
    """A model in this process."""

    def __init__(self, config: Config) -> None:
        from diastole.llm import LLM

        self._llm = LLM.of(config)
        self.name = self._llm.name

    def answer(self, messages: list[dict[str, str]], params: SamplingParams) -> Iterator[tuple[str, int]]:
        for delta in self._llm.stream(messages, params):
            yield delta.text, delta.usage.generated

    def close(self) -> None:
        self._llm.close()


class Remote:
    """A server with OpenAI's API."""

    def __init__(self, url: str, model: str | None) -> None:
        import httpx

        self._http = httpx.Client(base_url=url.rstrip("/").removesuffix("/v1"), timeout=httpx.Timeout(10, read=600))
        try:
            known = [m["id"] for m in self._http.get("/v1/models").json()["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"no server with OpenAI's API answers at {url}: {e}", param="url") from None
        if not known or (model is not None and model not in known):
            raise UserError(f"the server has no model {model!r}; it has {', '.join(known)}", param="model")
        self.name = model or known[0]

    def answer(self, messages: list[dict[str, str]], params: SamplingParams) -> Iterator[tuple[str, int]]:
        import json

        body: dict[str, Any] = {"model": self.name, "messages": messages, "stream": True}
        for key in ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"):
            if (value := getattr(params, key)) is not None:
                body[key] = value
        if params.stop:
            body["stop"] = list(params.stop)
        tokens = 0
        with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                error = json.loads(response.read()).get("error", {})
                raise UserError(f"the server refuses this: {error.get('message')}", param=error.get("param"))
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise UserError(f"the server stopped: {event['error'].get('message')}")
                for choice in event["choices"]:
                    tokens += 1
                    yield choice["delta"].get("content") or "", tokens

    def close(self) -> None:
        self._http.close()


class Talk:
    """A conversation with a voice."""

    def __init__(
        self, voice: Voice, params: SamplingParams, system: str | None, console: Console | None = None
    ) -> None:
        self.voice, self.params, self.system = voice, params, system
        self.console = console or Console(highlight=False)
        self.turns: list[dict[str, str]] = []

    def __enter__(self) -> Talk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.voice.close()

    # ---- with a person

    def converse(self) -> None:
        """Until the person leaves."""
        from prompt_toolkit import PromptSession
        from prompt_toolkit.formatted_text import HTML
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()
        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        session: PromptSession[str] = PromptSession(key_bindings=keys)
        self.console.print(f"[bold]{self.voice.name}[/]  [dim]/help for commands, Ctrl-D to leave[/]\n")
        while True:
            try:
                said = session.prompt(HTML("<ansigreen><b>you </b></ansigreen>")).strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if said == "/quit":
                return
            try:
                if said.startswith("/"):
                    self.command(said)
                elif said:
                    self.console.print(Text(f"{self.voice.name} ", style="bold cyan"), end="")
                    self.turn(said, lively=True)
                    self.console.print()
            except UserError as e:
                self.console.print(Text(e.message, style="red"))

    def turn(self, said: str, lively: bool = False) -> str:
        """Say something and print the answer; Ctrl-C ends the answer and keeps what came."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        asked = {"role": "user", "content": said}
        began, first, tokens, answer = time.monotonic(), 0.0, 0, ""
        pieces = self.voice.answer([*messages, *self.turns, asked], self.params)
        flow = Flow(self.console.width, len(self.voice.name) + 1 if lively else 0)
        try:
            for text, tokens in pieces:  # noqa: B007
                first = first or time.monotonic()
                answer += text
                self._put(flow.feed(text))
        except KeyboardInterrupt:
            self._put(flow.flush())
            self.console.print(Text(" [stopped]", style="dim"), end="")
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        self._put(flow.flush())
        self.console.print()
        if lively and tokens > 1:
            rate = (tokens - 1) / max(time.monotonic() - first, 1e-9)
            note = f"{tokens} tokens · first after {first - began:.2f} s · {rate:.0f} tokens/s"
            self.console.print(Text(note, style="dim"))
        self.turns += [asked, {"role": "assistant", "content": answer}]
        return answer

    def _put(self, text: str) -> None:
        self.console.print(Text(text), end="", soft_wrap=True)

    # ---- commands

    def command(self, line: str) -> None:
        """Do what a line that begins with a slash says.

        Raises:
            UserError: there is no such command, or it cannot be done.
        """
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        match word:
            case "/help":
                self.console.print(Text(HELP, style="dim"))
            case "/reset":
                self.turns.clear()
                self.console.print(Text("forgotten", style="dim"))
            case "/system":
                self.system = rest or self.system
                self.console.print(Text(self.system or "(none)", style="dim"))
            case "/params":
                self.console.print(Text(str(self.params), style="dim"))
            case "/set":
                self._set(rest)
            case "/save":
                self._save(rest)
            case _:
                raise UserError(f"there is no command {word}; /help lists them")

    def _set(self, rest: str) -> None:
        name, _, text = rest.partition(" ")
        if name not in {"temperature", "top_p", "top_k", "min_p", "max_tokens", "repetition_penalty", "seed"}:
            raise UserError(f"there is no parameter {name!r}; /params shows them")
        try:
            value = int(text) if name in {"top_k", "max_tokens", "seed"} else float(text)
        except ValueError:
            raise UserError(f"{name} needs a number, not {text!r}") from None
        changes: dict[str, Any] = {name: value}
        self.params = replace(self.params, **changes)

    def _save(self, rest: str) -> None:
        import json

        if not rest:
            raise UserError("/save needs a file name")
        head = [{"role": "system", "content": self.system}] if self.system else []
        try:
            Path(rest).write_text(json.dumps([*head, *self.turns], indent=1, ensure_ascii=False) + "\n", "utf-8")
        except OSError as e:
            raise UserError(f"{rest} cannot be written: {e.strerror}") from None
        self.console.print(Text(f"saved to {rest}", style="dim"))

    # ---- without a person

    def answer_lines(self, lines: Iterable[str]) -> None:
        """Answer each line by itself, plainly."""
        for line in lines:
            if line.strip():
                self.turns.clear()
                self.turn(line.strip())
