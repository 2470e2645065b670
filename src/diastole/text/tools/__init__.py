"""Tools: how models are told of functions that they may call, and how they write their calls."""

from diastole.text.tools.formats import HERMES, LLAMA, MISTRAL, Format
from diastole.text.tools.grammar import AUTO, REQUIRED, call_grammar
from diastole.text.tools.parser import CallEnd, CallPiece, CallStart, Listener, Parser, Piece, Plain
from diastole.text.tools.telling import Telling, telling_of

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
