"""Quota: how many requests and tokens a key may have per minute and at once; on a server without keys, an address."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from diastole.clock import Clock, RealClock
from diastole.serve.errors import ApiError
from diastole.serve.keys import UNSAID, Key, Limits

ACCOUNTS = 10_000  # that are remembered; the least recently seen are forgotten
MINUTE = 60.0
ROUNDING = 1e-6  # who waited as long as he was told has waited long enough


class Bucket:
    """Holds what a minute allows and fills again at a steady rate."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self.size, self._clock = per_minute, clock
        self._level, self._at = float(per_minute), clock.now()

    def level(self) -> float:
        """What it holds now."""
        now = self._clock.now()
        self._level = min(self.size, self._level + (now - self._at) * self.size / MINUTE)
        self._at = now
        return self._level

    def seconds_until(self, level: float) -> float:
        """How long until it holds so much."""
        lacking = level - self.level()
        return lacking * MINUTE / self.size if lacking > ROUNDING else 0.0

    def take(self, n: int) -> None:
        self._level = self.level() - n

    def give(self, n: int) -> None:
        """Put back."""
        self._level = min(self.size, self.level() + n)


@dataclass(slots=True)
class Bill:
    """Tokens that a request has used so far."""

    used: int = 0


class Visit:
    """One request of an account. Who has read its answer may send the next one at once, so it can be ended before that
    is sent; ending it again changes nothing."""

    def __init__(self, account: Account) -> None:
        self._account: Account | None = account
        account.inside += 1

    def end(self) -> None:
        if self._account is not None:
            self._account.inside -= 1
            self._account = None


class Account:
    """What one key or address has left. All methods belong to one event loop.

    Args:
        limits: 0 or None: no limit.
        count: is told of each refusal, by the name of the limit.
    """

    def __init__(self, limits: Limits, clock: Clock, count: Callable[[str], None]) -> None:
        self.limits, self._count = limits, count
        self.inside = 0
        self._requests = Bucket(limits.requests, clock) if limits.requests else None
        self._tokens = Bucket(limits.tokens, clock) if limits.tokens else None

    @contextmanager
    def enter(self) -> Iterator[Visit]:
        """One request.

        Raises:
            ApiError: 429, too many at once or in this minute.
        """
        most = self.limits.concurrent
        if most and self.inside >= most:
            raise self._refusal(
                "concurrent", f"{most} requests at once are the limit here, and so many are running.", 1
            )
        if self._requests is not None:
            wait = self._requests.seconds_until(1)
            if wait > 0:
                raise self._refusal(
                    "requests", f"The limit of {self._requests.size} requests per minute is reached.", wait
                )
            self._requests.take(1)
        visit = Visit(self)
        try:
            yield visit
        finally:
            visit.end()

    @contextmanager
    def spend(self, most: int) -> Iterator[Bill]:
        """Reserve ``most`` tokens; at the end, what the bill does not say was used is given back.

        Raises:
            ApiError: 429, there are not so many left; 400, there never will be.
        """
        bill = Bill()
        if self._tokens is None:
            yield bill
            return
        if most > self._tokens.size:
            message = (
                f"The request may take {most} tokens, prompt and answers together, and {self._tokens.size} per minute "
                "are the limit here: make the prompt shorter or max_tokens smaller."
            )
            raise ApiError(400, message, param="max_tokens", code="token_limit_exceeded")
        wait = self._tokens.seconds_until(most)
        if wait > 0:
            message = f"The request may take {most} tokens, and of {self._tokens.size} per minute too few are left."
            raise self._refusal("tokens", message, wait)
        self._tokens.take(most)
        try:
            yield bill
        finally:
            self._tokens.give(most - bill.used)

    def _refusal(self, limit: str, message: str, wait: float) -> ApiError:
        self._count(limit)
        seconds = max(1, math.ceil(wait))
        return ApiError(429, f"{message} Try again in {seconds} s.", code="rate_limit_exceeded", retry_after=seconds)

    def headers(self) -> dict[str, str]:
        """OpenAI's headers about limits and what is left; none where there is no limit."""
        said: dict[str, str] = {}
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                said[f"x-ratelimit-limit-{name}"] = str(bucket.size)
                said[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level())))
                said[f"x-ratelimit-reset-{name}"] = duration(bucket.seconds_until(bucket.size))
        return said


FREE = Account(UNSAID, RealClock(), lambda limit: None)


class Quotas:
    """The accounts of everybody.

    Args:
        usual: limits of keys without their own, and of addresses where there are no keys.
    """

    def __init__(self, usual: Limits, clock: Clock, count: Callable[[str], None]) -> None:
        self._usual, self._clock, self._count = usual, clock, count
        self._accounts: OrderedDict[str, Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def account(self, key: Key, address: str) -> Account:
        """The account of a key; of an address, if the key has no name."""
        limits = key.limits.over(self._usual)
        if not any(limits):
            return FREE
        who = f"key {key.name}" if key.name else network(address)
        account = self._accounts.get(who)
        if account is None or account.limits != limits:
            account = self._accounts[who] = Account(limits, self._clock, self._count)
        self._accounts.move_to_end(who)
        if len(self._accounts) > ACCOUNTS:
            self._accounts.popitem(last=False)
        return account


def network(address: str) -> str:
    """Whom an address stands for: itself, or in IPv6 the 64 bits that one customer is given."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # such as the empty name of a Unix socket's client
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def duration(seconds: float) -> str:
    """Time as OpenAI's headers write it: 90 ms are ``90ms``, 61.5 s are ``1m1.5s``."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes}m{rest / 1000:g}s" if minutes else f"{rest / 1000:g}s"
