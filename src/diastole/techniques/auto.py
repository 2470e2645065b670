"""Auto: a drafter and a controller that suit any model and load. It stands for both, which may also be named.

Prompt lookup needs neither a second model nor training; SmartSpec verifies its guesses where that pays.
"""

from __future__ import annotations

from dataclasses import dataclass

NEEDS = frozenset({"paged_kv"})
USES = ("ngram", "smartspec")


@dataclass(frozen=True, slots=True)
class Params:
    """No knobs."""
