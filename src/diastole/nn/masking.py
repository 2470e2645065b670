"""Decoders that fill masks: every row sees the whole text, and the model learned to tell what masked places hide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diastole.nn.decoder import Decoder
from diastole.types import UserError


@dataclass(frozen=True, slots=True)
class MaskedModel:
    """A decoder, and how its answers are read."""

    decoder: Decoder
    mask: int  # the id of a place that is not settled
    shift: int = 0  # 1: a row tells what stands behind its place


def masked_model(decoder: Decoder, config: Mapping[str, Any], shift: int = 0) -> MaskedModel:
    """With the mask that the configuration names.

    Raises:
        UserError: it names none, or one outside the vocabulary.
    """
    mask = config.get("mask_token_id")
    if isinstance(mask, bool) or not isinstance(mask, int) or not 0 <= mask < decoder.vocab:
        message = f"mask_token_id is {mask!r:.40}; it must be one of the {decoder.vocab} tokens"
        raise UserError(message, param="mask_token_id")
    return MaskedModel(decoder, mask, shift)
