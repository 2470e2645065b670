"""Affinity: who has read the beginning of a prompt before, and has its pages cached still, as far as one can know from
outside.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Sequence

BLOCK = 64  # tokens: a page
MOST = 1 << 16  # blocks remembered


class Affinity:
    """Which members have had which beginnings, the latest first to be believed.

    Args:
        most: blocks that are remembered; those that nobody has asked for longest are forgotten.
    """

    def __init__(self, most: int = MOST) -> None:
        self._seen: OrderedDict[bytes, set[str]] = OrderedDict()
        self._most = most

    def matched(self, keys: Sequence[bytes], names: Iterable[str]) -> dict[str, int]:
        """By member, how many tokens of a prompt with these ``keys`` it has had before."""
        found = dict.fromkeys(names, 0)
        going = set(found)
        for nth, key in enumerate(keys, 1):
            going &= self._seen.get(key, set())
            if not going:
                break
            found.update(dict.fromkeys(going, nth * BLOCK))
        return found

    def had(self, keys: Sequence[bytes], name: str) -> None:
        """A member is given this prompt."""
        for key in keys:
            self._seen.setdefault(key, set()).add(name)
            self._seen.move_to_end(key)
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)

    def forget(self, name: str) -> None:
        """A member has lost all it had."""
        for names in self._seen.values():
            names.discard(name)


def keys_of(prompt: bytes, salt: str) -> list[bytes]:
    """Of each whole block of a prompt, int32 ids as bytes, a key that stands for all up to its end."""
    step = BLOCK * 4
    digest = hashlib.blake2b(salt.encode(), digest_size=16)
    keys = []
    for at in range(0, len(prompt) - step + 1, step):
        digest.update(prompt[at : at + step])
        keys.append(digest.digest())
    return keys
