"""Text in and out: tokenizers, detokenisation without half characters, grammars."""

from diastole.text.detokenize import Detokenizer
from diastole.text.tokenizer import Tokenizer, TokenizerError

__all__ = ["Detokenizer", "Tokenizer", "TokenizerError"]
