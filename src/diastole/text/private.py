"""Private: a vocabulary whose special tokens have names that nobody knows, so that no text can contain one."""

from __future__ import annotations

import secrets

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend


class Private:
    """A vocabulary whose special tokens have private names.

    Args:
        backend: knows no special tokens yet; ids of added tokens may differ.
        special: the same with all.
    """

    def __init__(self, backend: Backend, special: Backend) -> None:
        self._backend = backend
        added = special.get_added_tokens_decoder()
        secret = secrets.token_hex(16)
        self.names = {t.content: f"<{secret}:{id}>" for id, t in added.items() if t.special}
        backend.add_special_tokens([_renamed(t, self.names[t.content]) for t in added.values() if t.special])
        pairs = ((backend.token_to_id(self.names.get(t.content, t.content)), id) for id, t in added.items())
        self._ids = {ours: id for ours, id in pairs if ours != id}

    def encode(self, text: str) -> list[int]:
        ids = self._ids
        return [ids.get(id, id) for id in ids_of(self._backend, text)]


def _renamed(token: AddedToken, name: str) -> AddedToken:
    return AddedToken(
        name,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=True,
    )


def ids_of(backend: Backend, text: str) -> list[int]:
    # A batch lets other threads run meanwhile, which ``encode`` does not.
    return list(backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)
