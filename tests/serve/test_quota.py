"""Limits of keys and addresses: the arithmetic on a clock that stands still, and the answers of a real server."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from diastole.clock import FakeClock
from diastole.serve import quota
from diastole.serve.errors import ApiError
from diastole.serve.keys import NOBODY, Key, Limits
from diastole.serve.quota import Account, Bucket, Quotas, duration, network
from serve.fakes import Running
from serve.test_chat import HELLO, URL, wait_ready
from serve.test_keys import ALICE, BOB, bearer

EVERY = {f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")}


def ignore(limit: str) -> None:
    """Nobody counts."""


def test_a_bucket_fills_steadily_and_no_further() -> None:
    clock = FakeClock()
    bucket = Bucket(60, clock)
    bucket.take(60)
    assert bucket.seconds_until(1) == 1
    clock.advance(0.5)
    assert bucket.seconds_until(1) == 0.5
    clock.advance(0.5)
    assert bucket.seconds_until(1) == 0
    bucket.give(100)
    assert bucket.level() == 60
    clock.advance(1e6)
    assert bucket.level() == 60


def test_who_waits_as_told_is_let_in() -> None:
    for rpm in (1, 7, 59, 6000):
        clock, counted = FakeClock(), Counter[str]()
        account = Account(Limits(rpm), clock, lambda limit, c=counted: c.update([limit]))  # type: ignore[misc]
        for _ in range(rpm):
            with account.enter():
                pass
        for _ in range(20):
            with pytest.raises(ApiError) as refused, account.enter():
                pass
            assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
            wait = int(refused.value.headers["retry-after"])
            assert wait == max(1, -(-60 // rpm))
            clock.advance(60 / rpm)
            with account.enter():
                pass
        assert counted == {"requests": 20}


def test_tokens_are_reserved_and_the_difference_comes_back() -> None:
    clock = FakeClock()
    account = Account(Limits(tokens=1000), clock, ignore)
    with account.spend(900) as bill:
        with pytest.raises(ApiError) as refused, account.spend(200):
            pass
        assert refused.value.headers["retry-after"] == "6"  # 100 are lacking, and 1000 come in a minute
        assert account.headers()["x-ratelimit-remaining-tokens"] == "100"
        bill.used = 300
    assert account.headers()["x-ratelimit-remaining-tokens"] == "700"
    assert account.headers()["x-ratelimit-reset-tokens"] == "18s"
    with contextlib.suppress(RuntimeError), account.spend(700) as bill:
        bill.used = 10
        raise RuntimeError
    assert account.headers()["x-ratelimit-remaining-tokens"] == "690"
    with pytest.raises(ApiError) as refused, account.spend(1001):
        pass
    assert (refused.value.status, refused.value.param) == (400, "max_tokens")


def test_only_so_many_at_once() -> None:
    account = Account(Limits(concurrent=2), FakeClock(), ignore)
    with account.enter():
        with account.enter(), pytest.raises(ApiError) as refused, account.enter():
            pass
        assert refused.value.status == 429
        with account.enter():
            pass


def test_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "ACCOUNTS", 100)
    quotas = Quotas(Limits(5, 0, 0), FakeClock(), ignore)
    alice = Key("alice", b"a")
    assert quotas.account(alice, "1.1.1.1") is quotas.account(alice, "2.2.2.2")
    assert quotas.account(NOBODY, "1.1.1.1") is not quotas.account(NOBODY, "2.2.2.2")
    assert quotas.account(NOBODY, "2001:db8::1") is quotas.account(NOBODY, "2001:db8::ffff:1")
    assert quotas.account(NOBODY, "2001:db8::1") is not quotas.account(NOBODY, "2001:db8:0:1::1")
    assert network("fe80::1%eth0") == "fe80::/64"
    free = quotas.account(Key("bob", b"b", Limits(0)), "")
    assert free is quotas.account(Key("carol", b"c", Limits(0)), "")
    assert free.headers() == {}
    changed = quotas.account(Key("alice", b"a", Limits(7)), "")
    assert changed.headers()["x-ratelimit-limit-requests"] == "7"
    with quotas.account(NOBODY, "9.9.9.9").enter():
        pass
    for i in range(1000):
        quotas.account(NOBODY, f"10.0.{i // 250}.{i % 250}")
    assert len(quotas) == 100


def test_durations_as_openai_writes_them() -> None:
    assert [duration(s) for s in (0, 0.0901, 1, 61.5, 3600)] == ["0ms", "91ms", "1s", "1m1.5s", "60m0s"]


def test_limits_of_keys_over_http(tmp_path: Path, eventually: Callable[[Callable[[], object]], None]) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{ALICE}:rpm=3,tpm=5000,concurrent=1\n{BOB}\n")
    with Running(api_key_file=str(file)) as server, httpx.Client(base_url=server.url) as http:
        wait_ready(server)
        alice = bearer("alice-key")
        for left in (2, 1):
            reply = http.post(URL, json={**HELLO, "max_tokens": 5}, headers=alice)
            assert reply.status_code == 200
            assert set(reply.headers) >= EVERY
            assert reply.headers["x-ratelimit-remaining-requests"] == str(left)
            assert reply.headers["x-ratelimit-limit-tokens"] == "5000"
        used = (5_000 - int(reply.headers["x-ratelimit-remaining-tokens"])) / 2
        assert used <= reply.json()["usage"]["total_tokens"]  # both took the same, and some has come back since
        assert set(http.get("/v1/models", headers=alice).headers) >= EVERY

        server.service.endless = True
        server.service.pace = 0.01
        with http.stream("POST", URL, json={**HELLO, "max_tokens": 4_000, "stream": True}, headers=alice) as busy:
            assert int(busy.headers["x-ratelimit-remaining-tokens"]) < 3_000
            second = http.post(URL, json=HELLO, headers=alice)
            assert second.status_code == 429
            assert second.json()["error"]["type"] == "rate_limit_error"
            assert second.json()["error"]["code"] == "rate_limit_exceeded"
            assert set(second.headers) >= EVERY
        eventually(lambda: not server.service.running)
        server.service.reset()
        third = http.post(URL, json=HELLO, headers=alice)
        assert third.status_code == 429
        assert 1 <= int(third.headers["retry-after"]) <= 20
        reply = http.post(URL, json=HELLO, headers=bearer("bob-key"))
        assert reply.status_code == 200
        assert not EVERY & set(reply.headers)
        metrics = http.get("/metrics", headers=bearer("bob-key")).text
        assert 'diastole_requests_limited_total{limit="concurrent"} 1.0' in metrics
        assert 'diastole_requests_limited_total{limit="requests"} 1.0' in metrics


@pytest.mark.parametrize("stream", [True, False])
def test_tokens_over_http(stream: bool) -> None:
    with Running(tokens_per_minute=200) as server, httpx.Client(base_url=server.url) as http:
        wait_ready(server)
        body = {**HELLO, "messages": [{"role": "user", "content": "x" * 60}], "stream": stream}
        assert http.post(URL, json=body).status_code == 400  # an answer may take all of the context
        refused = http.post(URL, json={**body, "max_tokens": 300})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
        assert http.post(URL, json={**body, "max_tokens": 130}).status_code == 200  # and takes 121 tokens
        assert http.post(URL, json={**body, "max_tokens": 1}).status_code == 200
        second = http.post(URL, json={**body, "max_tokens": 130})
        assert second.status_code == 429
        assert 1 <= int(second.headers["retry-after"]) <= 60
        assert [a.params.max_tokens for a in server.service.asked] == [130, 1]


def test_who_has_the_whole_answer_may_ask_again_at_once() -> None:
    with Running(concurrent_requests=1, tokens_per_minute=5_000) as server, httpx.Client(base_url=server.url) as http:
        wait_ready(server)
        for i in range(40):  # each reserves more than half of what there is, and uses little
            reply = http.post(URL, json={**HELLO, "max_tokens": 2_600, "stream": i % 2 == 0})
            assert reply.status_code == 200, reply.text
