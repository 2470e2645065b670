"""Tools: how models are told of functions that they may call, and how they write their calls."""

from diastole.chat.tools.grammar import AUTO, REQUIRED, call_grammar
from diastole.chat.tools.parser import CallEnd, CallPiece, CallStart, Listener, Parser, Piece, Plain
from diastole.chat.tools.telling import Telling, telling_of
from diastole.text.formats import HERMES, LLAMA, MISTRAL, Format

__all__ = [
    "AUTO",
    "HERMES",
    "LLAMA",
    "MISTRAL",
    "REQUIRED",
    "CallEnd",
    "CallPiece",
    "CallStart",
    "Format",
    "Listener",
    "Parser",
    "Piece",
    "Plain",
    "Telling",
    "call_grammar",
    "telling_of",
]
