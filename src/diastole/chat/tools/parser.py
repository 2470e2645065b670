"""Parser: an answer that comes in pieces, told apart into text and calls of tools.

No more is withheld than what may still become a call. What turns out to be none goes out as text.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from diastole.chat.tools.reader import CallReader
from diastole.text.formats import Format


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins. Calls are numbered from 0 in the order in which they begin."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallPiece:
    """The next piece of a call's arguments, JSON as the model writes it."""

    index: int
    arguments: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call ends. If it is not ``whole``, it broke off or is malformed after all, and ``raw`` is what was written."""

    index: int
    whole: bool
    raw: str


Piece = str | CallStart | CallPiece | CallEnd


class Listener(Protocol):
    """Reads one answer."""

    @property
    def calls(self) -> int:
        """Whole calls so far."""
        ...

    def push(self, text: str) -> list[Piece]:
        """What is certain now."""
        ...

    def flush(self) -> list[Piece]:
        """The rest, now that nothing more will come."""
        ...


class Plain:
    """For answers in which nothing is a call."""

    calls = 0

    def push(self, text: str) -> list[Piece]:
        return [text] if text else []

    def flush(self) -> list[Piece]:
        return []


class Parser:
    """Args:
    format: how calls are written.
    names: of the functions there are; calls of others are text.
    most: after so many calls the rest of the answer is dropped.
    """

    def __init__(self, format: Format, names: Collection[str], most: int | None = None) -> None:
        self.calls = 0
        self._format, self._names, self._most = format, frozenset(names), most
        self._begun = 0
        self._buffer = ""  # not looked at yet, or not to be decided yet
        self._held = ""  # what was written since the opener, should it all be text
        self._blank = ""  # white space at the start or behind a call: dropped if another call follows
        self._quiet = True  # no text since the start or the last call
        self._bare = False  # calls without an opener
        self._listed = False  # inside a JSON list
        self._called = False  # one call or more since the opener
        self._reader: CallReader | None = None
        self._out: list[Piece] = []
        self._state: Callable[[bool], bool] = self._in_text

    def push(self, text: str) -> list[Piece]:
        """See ``Listener``."""
        self._buffer += text
        return self._run(last=False)

    def flush(self) -> list[Piece]:
        """See ``Listener``."""
        return self._run(last=True)

    def _run(self, last: bool) -> list[Piece]:
        while self._state(last):
            pass
        if last and self._blank and not self._begun:
            self._out.append(self._blank)
            self._blank = ""
        out, self._out = self._out, []
        return out

    # ---- states: each does one step, and says whether another can follow

    def _in_text(self, last: bool) -> bool:
        text, opener = self._buffer, self._format.opener
        if self._begins_bare(text.lstrip()):
            self._open(text, "", bare=True)
            return True
        before, found, after = text.partition(opener)
        if found:
            self._say(before)
            self._open(after, opener, bare=False)
            return True
        keep = 0 if last else _overlap(text, opener)
        self._say(text[: len(text) - keep])
        self._buffer = text[len(text) - keep :]
        return False

    def _in_body(self, last: bool) -> bool:
        """Between opener and closer, outside calls."""
        text = self._buffer.lstrip()
        closer = self._format.closer
        if not text or (not last and closer and len(text) < len(closer) and closer.startswith(text)):
            if last and not self._called:
                self._give_up()
                return True
            return False
        self._held += self._buffer[: len(self._buffer) - len(text)]
        self._buffer = text
        if text[0] == "{":
            self._reader = CallReader(self._names, strict=self._bare)
            self._state = self._in_call
        elif text[0] == "[" and not self._listed and not self._called:
            self._listed = True
            self._hold(1)
        elif self._called and self._listed and text[0] == ",":
            self._hold(1)
        elif self._called and text[0] == "]" and self._listed:
            self._listed = False
            self._hold(1)
            if not closer:
                self._close()
        elif closer and text.startswith(closer) and self._called:
            self._hold(len(closer))
            self._close()
        else:
            self._give_up()
        return True

    def _in_call(self, last: bool) -> bool:
        reader = self._reader
        assert reader is not None
        started = reader.name is not None
        arguments, self._buffer = reader.read(self._buffer)
        if reader.name is not None and not started:
            self._begin(reader.name)
        if arguments:
            self._out.append(CallPiece(self._begun - 1, arguments))
        if reader.done:
            self._end(reader)
            return True
        if last or reader.failed:
            self._break(reader)
            return True
        return False

    def _in_nothing(self, last: bool) -> bool:
        """All calls that may be are there."""
        self._buffer = ""
        return False

    # ---- steps

    def _begins_bare(self, text: str) -> bool:
        """Whether the answer begins like calls without the opener, and not like the opener."""
        bare, opener = self._format.bare, self._format.opener
        if not bare or not self._quiet or self._begun or not text.startswith(bare):
            return False
        return not (opener.startswith(text) or text.startswith(opener))

    def _open(self, rest: str, opener: str, bare: bool) -> None:
        self._held, self._buffer, self._bare = opener, rest, bare
        self._listed = self._called = False
        self._state = self._in_body

    def _hold(self, size: int) -> None:
        self._held += self._buffer[:size]
        self._buffer = self._buffer[size:]

    def _begin(self, name: str) -> None:
        self._out.append(CallStart(self._begun, name))
        self._begun += 1
        self._blank = ""

    def _end(self, reader: CallReader) -> None:
        result = reader.result()
        if result is None:
            self._break(reader)
            return
        if reader.name is None:
            name, arguments = result
            self._begin(name)
            self._out.append(CallPiece(self._begun - 1, arguments))
        self._out.append(CallEnd(self._begun - 1, True, reader.raw))
        self.calls += 1
        self._held = ""
        self._called = self._quiet = True
        self._state = self._in_nothing if self.calls == self._most else self._in_body

    def _break(self, reader: CallReader) -> None:
        """What was read is no call."""
        raw = self._held + reader.raw
        self._held, self._state = "", self._in_text
        if reader.name is None:
            self._say(raw)
        else:
            self._out.append(CallEnd(self._begun - 1, False, raw))
            self._quiet = False  # its text, if it is shown

    def _give_up(self) -> None:
        """There is something here that is no call."""
        self._buffer = ("" if self._called else self._held) + self._buffer
        self._held, self._state = "", self._in_text
        if not self._called:
            # It begins with the opener or with a brace, which must not be tried again.
            tried = len(self._buffer) - len(self._buffer.lstrip()) + 1
            self._say(self._buffer[:tried])
            self._buffer = self._buffer[tried:]

    def _close(self) -> None:
        self._held, self._state = "", self._in_text

    def _say(self, text: str) -> None:
        if self._quiet:
            solid = text.lstrip()
            self._blank += text[: len(text) - len(solid)]
            if not solid:
                return
            text, self._blank, self._quiet = self._blank + solid, "", False
        if text:
            self._out.append(text)


def _overlap(text: str, word: str) -> int:
    """Length of the longest end of the text that is a beginning of the word, and not all of it."""
    for size in range(min(len(text), len(word) - 1), 0, -1):
        if word.startswith(text[-size:]):
            return size
    return 0
