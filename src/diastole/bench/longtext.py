"""Real text in several domains that is on every machine, and cuts of it by seed: nothing is fetched."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from random import Random

from diastole.bench.quality import standard_text
from diastole.text import Tokenizer
from diastole.types import UserError

_LICENCES = Path("/usr/share/common-licenses")  # on Debian and its descendants
# Modules of the standard library whose source is long and varied.
_SOURCES = (
    "argparse", "ast", "calendar", "configparser", "csv", "dataclasses", "datetime", "difflib", "doctest", "enum",
    "fractions", "gettext", "heapq", "imaplib", "inspect", "ipaddress", "logging", "mailbox", "optparse", "pathlib",
    "pickletools", "plistlib", "shutil", "smtplib", "statistics", "tarfile", "textwrap", "tokenize", "turtle",
    "zipfile",
)  # fmt: skip


def _code() -> str:
    return "\n\n".join(inspect.getsource(import_module(name)) for name in _SOURCES)


def _licences() -> str:
    files = {p.resolve() for p in _LICENCES.glob("*")} if _LICENCES.is_dir() else set()
    return "\n\n".join(p.read_text("utf-8", "replace") for p in sorted(files))


DOMAINS: dict[str, Callable[[], str]] = {
    "documentation": standard_text,  # English prose with some code in it
    "code": _code,
    "licences": _licences,  # legal English; empty where the system brings none
}


@dataclass(frozen=True, slots=True)
class Corpus:
    """A domain's text as a model reads it."""

    name: str
    tokenizer: Tokenizer
    ids: list[int]

    @classmethod
    def of(cls, tokenizer: Tokenizer, domain: str = "documentation") -> Corpus:
        """Raises:
        UserError: there is no such domain, or not on this machine.
        """
        if domain not in DOMAINS:
            raise UserError(f"unknown domain {domain!r}; there are {', '.join(DOMAINS)}", param="domain")
        text = DOMAINS[domain]()
        if not text:
            raise UserError(f"this machine has no texts of domain {domain!r}", param="domain")
        return cls(domain, tokenizer, tokenizer.encode(text, special=False))

    def encode(self, text: str) -> list[int]:
        """Any text as tokens; the names of special tokens in it are plain text."""
        return self.tokenizer.encode(text, special=False)

    def cut(self, n: int, rng: Random) -> list[int]:
        """``n`` tokens in a row from a random place.

        Raises:
            UserError: the whole text has fewer.
        """
        if n > len(self.ids):
            raise UserError(f"the {self.name} text has {len(self.ids)} tokens, not {n}", param="lengths")
        start = rng.randrange(len(self.ids) - n + 1)
        return self.ids[start : start + n]
