"""Requests made of a server's own OpenAPI document, and answers held against it."""

from __future__ import annotations

from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

# That whatever fits the document is served is not checked: it cannot say what grammars, templates and models allow.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
SECONDS = 10.0  # for an answer
# Fields whose right values the document cannot tell; in sound bodies they would hide all others.
UNTOLD = (
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "json_schema", "grammar", "tools", "tool_choice", "stream_options", "top_logprobs", "logit_bias", "stop_token_ids",
    "priority", "echo", "text", "system", "max_completion_tokens", "dimensions",
)  # fmt: skip


def operations(url: str) -> dict[str, Any]:
    """All operations that a server describes, by method and path."""
    schema = schemathesis.openapi.from_dict(httpx.get(url + "/openapi.json").json())
    schema.config.update(base_url=url)
    found = [result.ok() for result in schema.get_all_operations()]
    return {f"{o.method.upper()} {o.path}": o for o in found}


def attempt(operation: Any, examples: int, fields: dict[str, Any], names: dict[str, str]) -> list[int]:
    """Ask so many times, about half of them wrongly.

    Args:
        fields: of sound bodies, in place of what they have there, so that more than a name is looked at.
        names: the same for parameters of the path.

    Returns:
        statuses of the answers.

    Raises:
        AssertionError: an answer is not as the document says, or does not come.
    """
    modes = st.sampled_from([GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
    statuses: list[int] = []

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=modes.flatmap(lambda mode: operation.as_strategy(generation_mode=mode)))
    def ask(case: Case) -> None:
        if case.meta is not None and case.meta.generation.mode.is_positive:
            _make_served(case, fields, names)
        statuses.append(case.call_and_validate(checks=CHECKS, timeout=SECONDS).status_code)

    ask()
    return statuses


def _make_served(case: Case, fields: dict[str, Any], names: dict[str, str]) -> None:
    if isinstance(case.body, dict):
        kept = {k: v for k, v in case.body.items() if k not in UNTOLD}
        case.body = {**kept, **{k: v for k, v in fields.items() if k in kept}}
        if isinstance(case.body.get("slo"), dict):
            case.body["slo"] = {k: v for k, v in case.body["slo"].items() if k != "total_ms"}  # as below
    case.path_parameters.update({k: v for k, v in names.items() if k in case.path_parameters})
    case.headers.pop("x-priority", None)  # whether there are priorities the document does not say
    case.headers.pop("x-slo-total-ms", None)  # who allows no time at all is answered 504
