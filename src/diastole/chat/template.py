"""ChatTemplate: a model's own chat template, rendered in a worker process that can be killed.

A template comes with the model file and may loop for ever or grow without bound; a sandboxed interpreter limits what it
can reach, not how long it runs. So it runs in a process of its own, with a time limit kept from outside, a memory limit
kept by the system, and a limit on its output.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

from diastole.text.tokenizer import Tokenizer
from diastole.types import UserError

SECONDS = 2.0
LARGEST_OUTPUT = 16 * 2**20  # bytes


class TemplateError(UserError):
    """The template refuses the messages, or misbehaves."""

    def __init__(self, message: str, code: str = "template_error") -> None:
        super().__init__(message, param="messages", code=code)


class ChatTemplate:
    """Args:
    source: the template, Jinja.
    bos: text of the beginning-of-text token, for templates that write it.
    eos: text of the end-of-text token.
    seconds: limit of one rendering.
    """

    def __init__(self, source: str, bos: str = "", eos: str = "", seconds: float = SECONDS) -> None:
        self.source, self.bos, self.eos, self.seconds = source, bos, eos, seconds
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate | None:
        """The template that came with a tokenizer; None if there is none."""
        if tokenizer.chat_template is None:
            return None
        bos = "" if tokenizer.bos_id is None else tokenizer.token(tokenizer.bos_id)
        eos = "" if not tokenizer.eos_ids else tokenizer.token(min(tokenizer.eos_ids))
        return cls(tokenizer.chat_template, bos, eos)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        now: float | None = None,
        **extra: Any,
    ) -> str:
        """The conversation as the model wants to read it.

        Args:
            now: seconds since the epoch, for templates that write the date; None: they get an error.

        Raises:
            TemplateError: the template refuses the messages, fails, or takes too long.
        """
        names = {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt, **extra}
        wish = {"source": self.source, "names": {"bos_token": self.bos, "eos_token": self.eos, **names}, "now": now}
        with self._lock:
            answer = json.loads(self._ask(json.dumps(wish).encode()))
        if "error" in answer:
            raise TemplateError(f"the model's chat template refuses this: {answer['error']}")
        text: str = answer["text"]
        return text

    def warm(self) -> None:
        """Start the worker before it is needed."""
        with self._lock:
            self._start()

    def close(self) -> None:
        """End the worker."""
        with self._lock:
            self._kill()

    def _ask(self, wish: bytes) -> bytes:
        worker = self._start()
        assert worker.stdin is not None
        assert worker.stdout is not None
        deadline = time.monotonic() + self.seconds
        try:
            worker.stdin.write(len(wish).to_bytes(4, "little") + wish)
            worker.stdin.flush()
            size = int.from_bytes(_read(worker.stdout, 4, deadline), "little")
            if size > LARGEST_OUTPUT:
                raise TemplateError(f"the chat template made more than {LARGEST_OUTPUT} bytes")
            return _read(worker.stdout, size, deadline)
        except TimeoutError:
            self._kill()
            raise TemplateError(f"the chat template took more than {self.seconds:g} s", "template_timeout") from None
        except (EOFError, BrokenPipeError):
            self._kill()
            raise TemplateError("the chat template used more memory than it may") from None
        except BaseException:
            self._kill()  # what is left in the pipe belongs to nobody
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        if self._worker is None or self._worker.poll() is not None:
            command = [sys.executable, "-m", "diastole.chat.template_worker"]
            self._worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert self._worker.stdout is not None
            # Starting takes its own time, which is not the template's.
            _read(self._worker.stdout, 1, time.monotonic() + 30)
        return self._worker

    def _kill(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            for pipe in (self._worker.stdin, self._worker.stdout):
                if pipe is not None:
                    _close(pipe)
            self._worker = None


def _close(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        return  # unsent bytes for a process that is gone


def _read(pipe: IO[bytes], size: int, deadline: float) -> bytes:
    """Exactly so many bytes before the deadline (monotonic seconds).

    Raises:
        TimeoutError: they did not come.
        EOFError: the other end is gone.
    """
    got = bytearray()
    while len(got) < size:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            raise TimeoutError
        part = os.read(pipe.fileno(), min(size - len(got), 1 << 16))
        if not part:
            raise EOFError
        got += part
    return bytes(got)
