"""Errors in OpenAI's form: ``{"error": {"message", "type", "param", "code"}}``, with a status that matches."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from diastole.frontend.types import RequestEnded
from diastole.types import UserError

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    429: "rate_limit_error",
    499: "cancelled_error",  # not a status that clients take for a reason to try again
    500: "api_error",
    503: "overloaded_error",
    504: "timeout_error",
}

# What floors below the server say by code only.
STATUSES: Mapping[str, int] = {
    "model_not_found": 404,
    "template_not_allowed": 403,
    "overloaded": 503,
    "slo_unattainable": 503,
    "not_enough_memory": 503,
    "reload_running": 409,
    "reload_failed": 500,
}


class ErrorBody(msgspec.Struct):
    """``code`` is a word, never the HTTP status."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(msgspec.Struct):
    error: ErrorBody


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP; it decides the error's type.
        message: for the user: what is wrong, and what would be right.
        retry_after: seconds after which another attempt makes sense.
        close: end the connection, since the rest of the request was not read.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        close: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers: dict[str, str] = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(retry_after)
        if close:
            self.headers["connection"] = "close"

    def body(self) -> bytes:
        """The JSON that is sent."""
        return error_json(self.status, self.message, self.param, self.code)


def error_json(status: int, message: str, param: str | None = None, code: str | None = None) -> bytes:
    """An error's JSON."""
    return msgspec.json.encode(ErrorReply(ErrorBody(clean(message), kind(status), param, code)))


def kind(status: int, others: Mapping[int, str] | None = None) -> str:
    """An error's type. ``others``: statuses that another API gives types of their own."""
    return {**TYPES, **(others or {})}.get(status, "invalid_request_error")


def clean(message: str) -> str:
    """A message may quote the request: a lone surrogate in it has no UTF-8 form."""
    return message.encode("utf-8", "replace").decode("utf-8")


def of_user_error(error: UserError, names: Mapping[str, str] | None = None) -> ApiError:
    """The answer to a user error. ``names`` gives the request's own words for renamed fields."""
    message, param = error.message, error.param
    if names is not None and param is not None and param in names:
        message, param = message.replace(param, names[param], 1), names[param]
    status = STATUSES.get(error.code or "", 400)
    return ApiError(status, message, param=param, code=error.code, retry_after=5 if status == 503 else None)


def too_late() -> ApiError:
    """The answer to a request whose time was up before there was anything to answer."""
    message = "The time that this request gave itself for the whole (total_ms) was up before the first token."
    return ApiError(504, message, code="deadline_exceeded")


def ended_early(error: RequestEnded) -> ApiError:
    """The answer to a request that the engine ended. What went wrong is in the engine's log and nowhere else."""
    if error.finish == "deadline":
        return too_late()
    return ApiError(500, "Internal error in this request. The server goes on.", code="internal_error")


class Gone(Exception):
    """The client has left, or reads too slowly to be served. Nobody is there to be answered."""
