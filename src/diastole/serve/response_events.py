"""The Responses API's answer: the response object, and the events by which it grows.

There is one output item, the assistant's message, with one content part, its text. Every event is named and numbered,
and the last one carries the whole response.
"""

from __future__ import annotations

from itertools import count
from typing import Any

from diastole.serve.errors import ApiError
from diastole.serve.replies import UsageReply

Fields = dict[str, Any]  # of a JSON object
INCOMPLETE = {"length": "max_output_tokens", "deadline": "deadline"}  # why an answer is, by finish


class Answer:
    """One response as it is made.

    Args:
        id: its own; the message's is made from it.
        told: fields that repeat what was asked, see ``ResponsesRequest.told``.
    """

    def __init__(self, id: str, created: int, told: Fields) -> None:
        self.id, self._created, self._told = id, created, told
        self._item_id = "msg_" + id.removeprefix("resp_")
        self._numbers = count()
        self._pieces: list[str] = []

    # ---- the object

    def completed(self, finish: str, usage: UsageReply) -> tuple[str, Fields]:
        """Its final status, "completed" or "incomplete", and the whole of it."""
        reason = INCOMPLETE.get(finish)
        status = "completed" if reason is None else "incomplete"
        why = None if reason is None else {"reason": reason}
        return status, self._response(status, output=[self._item(status)], incomplete_details=why, usage=_usage(usage))

    def _response(self, status: str, **more: Any) -> Fields:
        empty: Fields = {"output": [], "error": None, "incomplete_details": None, "usage": None}
        head = {"id": self.id, "object": "response", "created_at": self._created, "status": status}
        return {**head, **empty, **self._told, **more}

    def _item(self, status: str, parts: list[Fields] | None = None) -> Fields:
        content = [self._part()] if parts is None else parts
        return {"id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": content}

    def _part(self) -> Fields:
        return {"type": "output_text", "text": "".join(self._pieces), "annotations": [], "logprobs": []}

    # ---- its growth

    def say(self, text: str) -> None:
        """More of the text."""
        self._pieces.append(text)

    def opening(self) -> list[Fields]:
        """The events before the first text."""
        begun = self._response("in_progress")
        return [
            self._event("response.created", response=begun),
            self._event("response.in_progress", response=begun),
            self._event("response.output_item.added", output_index=0, item=self._item("in_progress", [])),
            self._in_part("response.content_part.added", part=self._part()),
        ]

    def delta(self, text: str) -> Fields:
        """The event of a piece of text, which it says."""
        self.say(text)
        return self._in_part("response.output_text.delta", delta=text, logprobs=[])

    def closing(self, finish: str, usage: UsageReply) -> list[Fields]:
        """The events after the last text."""
        status, response = self.completed(finish, usage)
        return [
            self._in_part("response.output_text.done", text="".join(self._pieces), logprobs=[]),
            self._in_part("response.content_part.done", part=self._part()),
            self._event("response.output_item.done", output_index=0, item=self._item(status)),
            self._event(f"response.{status}", response=response),
        ]

    def failure(self, error: ApiError) -> Fields:
        """The last event where an error ends the stream."""
        why = {"code": "server_error", "message": error.message}  # the API's own word for faults of ours
        return self._event("response.failed", response=self._response("failed", error=why))

    def _in_part(self, type: str, **fields: Any) -> Fields:
        return self._event(type, item_id=self._item_id, output_index=0, content_index=0, **fields)

    def _event(self, type: str, **fields: Any) -> Fields:
        return {"type": type, "sequence_number": next(self._numbers), **fields}


def _usage(usage: UsageReply) -> Fields:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.prompt_tokens_details.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    }
