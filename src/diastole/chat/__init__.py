"""Conversations as text: chat templates, what parts of a prompt nobody may forge, stop strings, calls of tools."""

from diastole.chat.stops import StopStrings
from diastole.chat.template import ChatTemplate, TemplateError

__all__ = ["ChatTemplate", "StopStrings", "TemplateError"]
