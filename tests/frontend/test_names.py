"""What requests call a service."""

from __future__ import annotations

import pytest

from diastole.config import ServiceConfig
from diastole.frontend.assembly import service_name


@pytest.mark.parametrize(
    ("key", "config", "name"),
    [
        ("", ServiceConfig(model="/models/SmolLM2-135M.Q4_1.gguf"), "SmolLM2-135M.Q4_1"),
        ("", ServiceConfig(model="/models/Qwen2.5-0.5B"), "Qwen2.5-0.5B"),
        ("", ServiceConfig(model="hf:Qwen/Qwen2.5-0.5B"), "Qwen2.5-0.5B"),
        ("", ServiceConfig(model="smollm2-135m"), "smollm2-135m"),
        ("chat", ServiceConfig(model="/models/Qwen2.5-0.5B"), "chat"),
        ("chat", ServiceConfig(name="mine"), "mine"),
    ],
)
def test_own_name_then_key_then_the_models(key: str, config: ServiceConfig, name: str) -> None:
    assert service_name(key, config) == name
