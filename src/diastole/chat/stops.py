"""StopStrings: finds stop strings in text that comes in pieces, and never lets a part of one out.

The match that ends first wins; of several that end at the same character, the longest. Text that may yet become a stop
string is withheld, no more than that. Each stop string is followed by the automaton of Knuth, Morris and Pratt ("Fast
pattern matching in strings", 1977), so the work per character does not depend on how the strings repeat themselves.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Args:
    stops: the strings, none empty.
    include: whether the text that goes out ends with the stop string or before it.
    """

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        self._stops = [(s, _failure(s)) for s in sorted(set(stops), key=len, reverse=True)]
        self._include = include
        self._matched = [0] * len(self._stops)  # of each stop, how much of it the text ends with
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that may go out, and the stop string that ended it, if one did."""
        if not self._stops:
            return text, None
        whole = self._held + text
        for at, c in enumerate(text, len(self._held) + 1):
            for i, (stop, failure) in enumerate(self._stops):
                n = self._matched[i]
                while n and stop[n] != c:
                    n = failure[n]
                n += stop[n] == c
                if n == len(stop):
                    self._held = ""
                    return whole[:at] if self._include else whole[: at - n], stop
                self._matched[i] = n
        keep = len(whole) - max(self._matched)
        self._held = whole[keep:]
        return whole[:keep], None

    def flush(self) -> str:
        """What was withheld, now that nothing more will come."""
        held, self._held = self._held, ""
        return held


def _failure(s: str) -> list[int]:
    """failure[n]: length of the longest proper prefix of s[:n] that is also its suffix."""
    table = [0] * (len(s) + 1)
    n = 0
    for i in range(1, len(s)):
        while n and s[n] != s[i]:
            n = table[n]
        n += s[n] == s[i]
        table[i + 1] = n
    return table
