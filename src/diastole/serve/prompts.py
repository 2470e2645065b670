"""One or several prompts in one field, each as text or as token ids."""

from __future__ import annotations

from diastole.serve.openai import wrong

Prompt = str | list[int]


def split_prompts(given: str | list[str | int | list[int]], field: str, most: int) -> list[Prompt]:
    """The prompts in what may be a string, ids, strings, or lists of ids.

    Args:
        field: what the request calls it.
        most: prompts allowed.

    Raises:
        ApiError: there are none, too many, an empty one, or kinds are mixed.
    """
    prompts: list[Prompt]
    if isinstance(given, str):
        prompts = [given]
    elif given and all(isinstance(p, int) for p in given):
        prompts = [[p for p in given if isinstance(p, int)]]
    elif all(isinstance(p, str) for p in given):
        prompts = [p for p in given if isinstance(p, str)]
    elif all(isinstance(p, list) for p in given):
        prompts = [p for p in given if isinstance(p, list)]
    else:
        message = f"{field} must be a string, a list of strings, a list of token ids, or a list of such lists."
        raise wrong(field, message, "invalid_type")
    if not prompts:
        raise wrong(field, f"{field} must hold at least one prompt.", "empty_array")
    if len(prompts) > most:
        raise wrong(field, f"{field} may hold at most {most} prompts, not {len(prompts)}.")
    for i, one in enumerate(prompts):
        if not one:
            where = path(field, i, len(prompts))
            raise wrong(where, f"{where} is empty: give at least one token.", "empty_prompt")
    return prompts


def path(field: str, which: int, of: int) -> str:
    """What one of several prompts is called in errors."""
    return field if of == 1 else f"{field}[{which}]"
