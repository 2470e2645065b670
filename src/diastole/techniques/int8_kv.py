"""Keys and values in eight bits, one scale per token and head: half the memory of bf16. The plain baseline of formats.

Rounding costs about one percent of a row's root mean square; see ``state/kv.py`` and the kernels' tests. Beside a
technique that picks single tokens they lie token by token, which halves what has to be fetched for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diastole.slots import Facts
from diastole.state.kv import PagedKV

NEEDS: frozenset[str] = frozenset({"paged_kv"})


@dataclass(frozen=True, slots=True)
class Params:
    """No knobs."""


def TECHNIQUE(p: Params, facts: Facts) -> dict[str, Any]:
    return {"kv": PagedKV("int8", by_token="rows8")}
