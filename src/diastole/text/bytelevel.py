"""The byte alphabet of byte-level BPE vocabularies: every byte has a printable character."""

from __future__ import annotations


def byte_alphabet() -> dict[str, int]:
    """Character -> byte. Printable Latin-1 characters stand for themselves, the others follow from U+0100 on.

    Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2), public encoder.
    """
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(b): b for b in own}
    others = (b for b in range(256) if b not in own)
    alphabet |= {chr(256 + i): b for i, b in enumerate(others)}
    return alphabet
