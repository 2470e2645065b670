"""Uploads: forms with a file, as multipart/form-data."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

from diastole.serve.endpoint import Endpoint
from diastole.serve.errors import ApiError
from diastole.serve.exchange import Exchange

MOST_FIELDS = 64
LONGEST_FIELD = 16_384  # bytes
MULTIPART = "multipart/form-data"


@dataclass(slots=True)
class Form:
    """What came: the values of each field, and files by their field."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # name and content

    def one(self, name: str, default: str = "") -> str:
        """The only value of a field.

        Raises:
            ApiError: 400, it is given several times.
        """
        values = self.fields.get(name, [default])
        if len(values) > 1:
            raise ApiError(400, f"{name} is given {len(values)} times.", param=name, code="invalid_value")
        return values[0]


class UploadEndpoint(Endpoint):
    """One that takes a form and makes the engine work: only so many are inside at once."""

    STATUSES = (*Endpoint.STATUSES, 404, 413, 415, 429, 503)

    async def answer(self, exchange: Exchange) -> None:
        self.face.memory.check()
        with self.face.gate.enter(), exchange.account.enter() as visit:
            exchange.ending = visit.end
            if exchange.headers.get("content-type", "").partition(";")[0].strip().lower() != MULTIPART:
                raise ApiError(415, f"Send the file in a form, as {MULTIPART}.", code="unsupported_media_type")
            await self.handler(self.face, exchange)


def parse(body: bytes, content_type: str) -> Form:
    """A form.

    Raises:
        ApiError: 400, it is none, or has too many or too long fields.
    """
    from python_multipart import parse_form
    from python_multipart.exceptions import FormParserError

    form = Form()

    def take(part: Any) -> None:
        name = part.field_name.decode("utf-8", "replace")
        if len(form.fields) + len(form.files) >= MOST_FIELDS:
            raise ApiError(400, f"A form may have at most {MOST_FIELDS} fields.", code="invalid_value")
        if hasattr(part, "file_object"):
            part.file_object.seek(0)
            form.files[name] = (part.file_name or b"").decode("utf-8", "replace"), part.file_object.read()
            part.close()
            return
        value = part.value or b""
        if len(value) > LONGEST_FIELD:
            raise ApiError(400, f"{name[:60]} is longer than {LONGEST_FIELD} bytes.", param=name[:60])
        form.fields.setdefault(name, []).append(value.decode("utf-8", "replace"))

    try:
        parse_form({"Content-Type": content_type.encode("latin-1")}, io.BytesIO(body), take, take)
    except (FormParserError, ValueError) as e:
        raise ApiError(400, f"The form cannot be read: {str(e)[:200]}", code="invalid_form") from None
    return form
