"""Diastole: an inference engine and server for models that decode in time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diastole.llm import LLM, AsyncLLM
    from diastole.params import Grammar, PoolParams, SamplingParams
    from diastole.types import UserError

__version__ = "0.1.0"
__all__ = ["LLM", "AsyncLLM", "Grammar", "PoolParams", "SamplingParams", "UserError", "__version__"]

_HOMES = {
    "LLM": "diastole.llm",
    "AsyncLLM": "diastole.llm",
    "Grammar": "diastole.params",
    "PoolParams": "diastole.params",
    "SamplingParams": "diastole.params",
    "UserError": "diastole.types",
}


def __getattr__(name: str) -> Any:  # imported when used, so that the command line starts quickly
    if name not in _HOMES:
        raise AttributeError(f"module 'diastole' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
