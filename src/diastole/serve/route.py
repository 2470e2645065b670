"""Route: one path and method: what answers there, and what is read and answered. Router, metrics and the OpenAPI
document are made from routes alone."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diastole.serve.bounds import LONGEST_MS, MOST_PRIORITY
from diastole.serve.endpoint import Endpoint, Handler
from diastole.serve.slo import FIRST_HEADERS, GAP_HEADERS, PRIORITY_HEADER, TOTAL_HEADERS

JSON = "application/json"
EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Parameter:
    """``place`` is "path", "query" or "header"; ``schema`` its JSON schema."""

    name: str
    place: str
    schema: Mapping[str, Any]


_TIME = {"type": "number", "exclusiveMinimum": 0, "maximum": LONGEST_MS}
_PRIORITY = {"type": "integer", "minimum": -MOST_PRIORITY, "maximum": MOST_PRIORITY}
PROMISES = tuple(Parameter(name, "header", _TIME) for name in (*FIRST_HEADERS, *GAP_HEADERS, *TOTAL_HEADERS))
WISHES = (*PROMISES, Parameter(PRIORITY_HEADER, "header", _PRIORITY))


@dataclass(frozen=True, slots=True)
class Route:
    """``path`` is in Starlette's form.

    Args:
        answers: the type of a good answer's body by media type; under ``EVENTS`` that of one event's data.
        reads: the type of the JSON body; a union with None: there may be none.
        statuses: of errors that the handler gives, besides those of every endpoint of its kind.
        parameters: besides those of the path.
    """

    method: str
    path: str
    handler: Handler
    answers: Mapping[str, Any]
    reads: Any = None
    endpoint: type[Endpoint] = Endpoint
    statuses: tuple[int, ...] = ()
    parameters: tuple[Parameter, ...] = field(default=())

    @property
    def label(self) -> str:
        """The path as metrics and documents write it."""
        return self.path.replace(":path}", "}")

    @property
    def summary(self) -> str:
        """What it does, in a line."""
        return (inspect.getdoc(self.handler) or "").partition("\n")[0]

    @property
    def all_parameters(self) -> tuple[Parameter, ...]:
        """Also those of the path."""
        names = re.findall(r"{(\w+)}", self.label)
        return (*(Parameter(name, "path", {"type": "string", "minLength": 1}) for name in names), *self.parameters)

    @property
    def all_statuses(self) -> tuple[int, ...]:
        """Of all errors."""
        return tuple(sorted({*self.endpoint.STATUSES, *self.statuses}))
