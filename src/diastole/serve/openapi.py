"""The OpenAPI document, made from the routes and the structs that they read and answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from http import HTTPStatus
from types import NoneType
from typing import Any, get_args

import msgspec

from diastole import __version__
from diastole.serve.border import OPEN_PATHS
from diastole.serve.dialect import dialect_of
from diastole.serve.route import EVENTS, JSON, Route

Fields = dict[str, Any]  # of a JSON object

VERSION = "3.1.0"
ABOUT = "An inference engine and server for models that decode in time."
EACH = "One event of the stream."
KEY = "key"  # the security scheme's name
REF = "#/components/schemas/{name}"


def document(routes: Sequence[Route], open_: bool) -> bytes:
    """The document as JSON. It takes milliseconds.

    Args:
        open_: the server has no keys, so that everybody may come in.
    """
    types = list(dict.fromkeys(_types(routes)))
    schemas, components = msgspec.json.schema_components(types, ref_template=REF)
    written = _Written(dict(zip(types, schemas, strict=True)), open_)
    paths: dict[str, Fields] = {}
    for route in routes:
        paths.setdefault(route.label, {})[route.method.lower()] = written.operation(route)
    return msgspec.json.encode({
        "openapi": VERSION,
        "info": {"title": "Diastole", "version": __version__, "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {KEY: {"type": "http", "scheme": "bearer"}},
        },
    })  # fmt: skip


def _types(routes: Iterable[Route]) -> Iterator[Any]:
    """All types of bodies."""
    for route in routes:
        yield from route.answers.values()
        yield dialect_of(route.label).error_reply
        if route.reads is not None:
            yield _body_type(route)


def _body_type(route: Route) -> Any:
    """What is read where something is sent."""
    given = [t for t in get_args(route.reads) if t is not NoneType]
    return given[0] if given and _may_be_empty(route) else route.reads


def _may_be_empty(route: Route) -> bool:
    return NoneType in get_args(route.reads)


class _Written:
    """Args:
    schemas: of bodies, by type.
    """

    def __init__(self, schemas: Mapping[Any, Fields], open_: bool) -> None:
        self._schemas, self._open = schemas, open_

    def operation(self, route: Route) -> Fields:
        operation: Fields = {"operationId": _id(route), "summary": route.summary}
        if parameters := route.all_parameters:
            operation["parameters"] = [
                {"name": p.name, "in": p.place, "required": p.place == "path", "schema": p.schema} for p in parameters
            ]
        if route.reads is not None:
            content = {JSON: {"schema": self._schemas[_body_type(route)]}}
            operation["requestBody"] = {"required": not _may_be_empty(route), "content": content}
        operation["responses"] = self._responses(route)
        operation["security"] = self._security(route)
        return operation

    def _responses(self, route: Route) -> Fields:
        content = {media: self._body(route, media, type) for media, type in route.answers.items()}
        responses: Fields = {"200": {"description": "An answer.", "content": content}}
        error = {JSON: {"schema": self._schemas[dialect_of(route.label).error_reply]}}
        for status in route.all_statuses:
            if status != 401 or route.label not in OPEN_PATHS:
                responses[str(status)] = {"description": _phrase(status), "content": error}
        return responses

    def _body(self, route: Route, media: str, type: Any) -> Fields:
        if media != EVENTS:
            return {"schema": self._schemas[type]}
        # 3.1 has no word for the events of a stream: as 3.2 writes it for each event, with what its data hold.
        dialect = dialect_of(route.label)
        told = {"anyOf": [self._schemas[type], self._schemas[dialect.error_reply]]}
        data: Fields = {"type": "string", "contentMediaType": JSON, "contentSchema": told}
        if end := dialect.end.decode().removeprefix("data: ").strip():
            data = {"anyOf": [{"const": end}, data]}
        event = {"data": data, "event": {"type": "string"}}
        return {"schema": {"type": "object", "description": EACH, "properties": event, "required": ["data"]}}

    def _security(self, route: Route) -> list[Fields]:
        if _is_open(route):
            return []
        return [{}, {KEY: []}] if self._open else [{KEY: []}]


def _is_open(route: Route) -> bool:
    """Whether it needs no key, at least under some of its names."""
    return any(fnmatchcase(path, re.sub(r"{\w+}", "*", route.label)) for path in OPEN_PATHS)


def _id(route: Route) -> str:
    words = "".join(c if c.isalnum() else " " for c in route.label).split() or ["console"]
    return "_".join([route.method.lower(), *words])


def _phrase(status: int) -> str:
    """499 is not HTTP's own."""
    return "Cancelled" if status == 499 else HTTPStatus(status).phrase
