"""Stop strings against the plain definition, in any pieces."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from diastole.chat import StopStrings

ab = st.text("ab", min_size=1, max_size=6)


def plain(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The match that ends first; of those, the longest."""
    for end in range(1, len(text) + 1):
        hits = [s for s in stops if text[:end].endswith(s)]
        if hits:
            longest = max(hits, key=len)
            return text[: end if include else end - len(longest)], longest
    return text, None


@given(st.lists(st.text("ab", max_size=8), max_size=8), st.lists(ab, max_size=3), st.booleans())
@settings(max_examples=400, deadline=None)
def test_any_pieces(pieces: list[str], stops: list[str], include: bool) -> None:
    matcher = StopStrings(stops, include)
    out, hit = "", None
    for piece in pieces:
        safe, hit = matcher.push(piece)
        out += safe
        if hit is not None:
            break
    else:
        out += matcher.flush()
    assert (out, hit) == plain("".join(pieces), stops, include)


@given(st.lists(st.text("abc", max_size=8), max_size=8), st.lists(st.text("abc", min_size=1, max_size=6), max_size=3))
@settings(max_examples=300, deadline=None)
def test_nothing_goes_out_that_may_become_a_stop_and_nothing_else_is_held(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStrings(stops)
    out = seen = ""
    for piece in pieces:
        safe, hit = matcher.push(piece)
        out, seen = out + safe, seen + piece
        if hit is not None:
            return
        held = seen[len(out) :]
        endings = [seen[i:] for i in range(len(seen)) if any(s.startswith(seen[i:]) for s in stops)]
        assert held == (max(endings, key=len) if endings else "")


class Counted(list[int]):
    """A table that counts how often it is asked."""

    asked = 0

    def __getitem__(self, i: Any) -> Any:
        self.asked += 1
        return super().__getitem__(i)


def test_adversarial_stops_cost_no_more_than_others() -> None:
    """At most one step back per character that was matched: linear, whatever the string repeats."""
    matcher = StopStrings(["a" * 99 + "b"])
    stop, failure = matcher._stops[0]
    table = Counted(failure)
    matcher._stops = [(stop, table)]
    n = 10_000
    for _ in range(n // 10):
        matcher.push("aaaaaaaaac")
    assert table.asked <= n
