"""Keys that are kept apart on the real engine: a prompt that one of them cached is a miss for the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from frontend.test_serving import MODEL, Running
from models.common import embedded
from serve.test_keys import ALICE, BOB, bearer

pytestmark = [pytest.mark.model, pytest.mark.slow]

PROMPT = list(range(1_000, 1_300))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"{ALICE}\n{BOB}\n")
    return file


@pytest.fixture(params=[True, False], ids=["isolated", "shared"], scope="module")
def served(request: pytest.FixtureRequest, keys: Path) -> Iterator[tuple[Running, bool]]:
    embedded()
    flags = ["--isolate-keys"] if request.param else []
    running = Running("--api-key-file", str(keys), *flags)
    yield running, request.param
    assert running.stop() == 0


def test_a_key_finds_only_its_own_prefixes(served: tuple[Running, bool]) -> None:
    server, isolated = served

    def ask(key: str, **more: str) -> tuple[int, float]:
        """Cached tokens as told, and tokens that the engine had to compute as counted."""
        server.http.headers.update(bearer(key))
        before = server.metric("prefix_cache_queries_total") - server.metric("prefix_cache_hits_total")
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 1, **more}
        reply = server.http.post("/v1/completions", json=body)
        assert reply.status_code == 200, reply.text
        after = server.metric("prefix_cache_queries_total") - server.metric("prefix_cache_hits_total")
        return reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"], after - before

    miss = (0, len(PROMPT))
    assert ask("alice-key") == miss
    cached, computed = ask("alice-key")
    assert cached >= 256
    assert computed == len(PROMPT) - cached
    first = ask("bob-key")
    assert first == (miss if isolated else (cached, computed))
    assert ask("bob-key") == (cached, computed)
    # Salts of requests divide further, and no salt of Bob's leads to what Alice has.
    assert ask("alice-key", cache_salt="s") == miss
    assert ask("alice-key", cache_salt="s") == (cached, computed)
    assert ask("bob-key", cache_salt="s") == (miss if isolated else (cached, computed))
    assert ask("bob-key", cache_salt="key/alice/") == miss
    assert ask("bob-key", cache_salt="key/alice/s") == miss
