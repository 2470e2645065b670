"""Text in and out: tokenizers, detokenisation without half characters, stop strings, chat templates."""

from diastole.text.detokenize import Detokenizer
from diastole.text.stops import StopStrings
from diastole.text.template import ChatTemplate, TemplateError
from diastole.text.tokenizer import Tokenizer, TokenizerError

__all__ = ["ChatTemplate", "Detokenizer", "StopStrings", "TemplateError", "Tokenizer", "TokenizerError"]
