"""Chat templates: Hugging Face's semantics, and no template can hold us up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from diastole.chat import ChatTemplate, TemplateError
from models.common import tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{- bos_token }}\n{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}\n"
    "    {{- message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n{%- if tools is not none %}{{ tools | tojson(indent=2) }}{% endif %}\n"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
TEMPLATES = {"chatml": CHATML, "llama": LLAMA, "mistral": MISTRAL}
TALK = [
    {"role": "user", "content": "Hi <b>&\"' é"},
    {"role": "assistant", "content": "  Hello\n"},
    {"role": "user", "content": "日本"},
]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"é": 1}}}]


@pytest.fixture(scope="module")
def made() -> Iterator[Any]:
    kept: list[ChatTemplate] = []

    def make(source: str, **more: Any) -> ChatTemplate:
        kept.append(ChatTemplate(source, "<s>", "</s>", **more))
        return kept[-1]

    yield make
    for template in kept:
        template.close()


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("tools", [None, TOOLS])
def test_renderings_equal_transformers(made: Any, name: str, tools: Any) -> None:
    source = TEMPLATES[name]
    want, _ = render_jinja_template(
        [TALK], tools=tools, chat_template=source, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    assert made(source).render(TALK, tools=tools) == want[0]


@pytest.mark.model
def test_the_embedded_models_own() -> None:
    source = tokenizer().chat_template
    assert source is not None
    want, _ = render_jinja_template([TALK], chat_template=source, add_generation_prompt=True)
    template = ChatTemplate.of(tokenizer())
    assert template is not None
    assert template.render(TALK) == want[0]
    template.close()


def test_a_template_may_refuse(made: Any) -> None:
    with pytest.raises(TemplateError, match="roles must alternate") as e:
        made(MISTRAL).render([*TALK, *TALK])
    assert e.value.param == "messages"


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("{{ 1 / 0 }}", "zero"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].nothing.at.all }}", "no attribute"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ strftime_now('%Y') }}", "date"),
    ],
)
def test_faults_are_errors(made: Any, source: str, what: str) -> None:
    with pytest.raises(TemplateError, match=what):
        made(source).render(TALK)


def test_the_date_comes_from_a_clock_that_is_passed(made: Any) -> None:
    assert made("{{ strftime_now('%Y-%m-%d') }}").render(TALK, now=86_400.0) == "1970-01-02"


FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}{{ '' }}{% endfor %}{% endfor %}"


def test_a_template_that_does_not_end_is_killed_and_the_next_one_works(made: Any) -> None:
    slow = made(FOREVER, seconds=0.3)
    for _ in range(2):
        with pytest.raises(TemplateError, match=r"more than 0\.3 s") as e:
            slow.render(TALK)
        assert e.value.code == "template_timeout"
    slow.source = "fine"
    assert slow.render(TALK) == "fine"


def test_a_template_that_grows_is_stopped(made: Any) -> None:
    with pytest.raises(TemplateError):
        made("{{ 'x' * 2000000000 }}").render(TALK)
    with pytest.raises(TemplateError, match="bytes"):
        made("{{ 'x' * 20000000 }}").render(TALK)


def test_many_threads_at_once(made: Any) -> None:
    template = made("{{ messages[0].content }}")
    got: dict[int, str] = {}

    def work(i: int) -> None:
        got[i] = template.render([{"role": "user", "content": str(i)}])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == {i: str(i) for i in range(8)}
