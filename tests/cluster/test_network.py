"""Networks that cut, stall and crawl between the processes of a cluster, and callers who do not belong there."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cluster.test_router import PROMPTS, SPLIT, play, right
from cluster.toys import Front, Toy, Toys
from diastole.cluster import door, fetching, states
from diastole.cluster.door import Address, NotAdmitted, answer, call
from diastole.cluster.router import Cluster
from diastole.cluster.worker import Start
from diastole.config import Config, ServerConfig
from diastole.state.lease import Blob


class Wire:
    """A network to one address. The first connection is the router's, the others carry states.

    Args:
        allowed: bytes of states that pass before it does what it does; None: it does nothing.
        what: "cut" or "stall", or "crawl" from the first byte on.
    """

    def __init__(self, to: Address, allowed: int | None, what: str, router: bool = False) -> None:
        self.to, self.allowed, self.what, self.router = to, allowed, what, router
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self._door.getsockname()[:2])
        self.struck = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        first = True
        while True:
            near, _ = self._door.accept()
            far = socket.create_connection(self.to)
            bad = first == self.router
            first = False
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(a, b, bad), daemon=True).start()

    def _pass(self, a: socket.socket, b: socket.socket, bad: bool) -> None:
        with contextlib.suppress(OSError):
            while data := a.recv(4096):
                if bad and self.allowed is not None:
                    if self.what == "crawl":
                        time.sleep(0.002)
                    else:
                        self.allowed -= len(data)
                    if self.allowed < 0:
                        self.struck.set()
                        if self.what == "stall":
                            threading.Event().wait()
                        self.allowed = None  # once
                        break
                b.sendall(data)
        for sock in (a, b):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Far(Toys):
    """Toys that are reached over networks; the first worker's is a bad one."""

    def __init__(self, allowed: int | None, what: str, router: bool = False) -> None:
        super().__init__()
        self.allowed, self.what, self.router = allowed, what, router
        self.wires: list[Wire] = []

    async def place(self, start: Start) -> Toy:
        toy = await super().place(start)
        bad = not self.wires
        self.wires.append(Wire(toy.address, self.allowed if bad else None, self.what, self.router))
        toy.address = self.wires[-1].address
        return toy


def front(far: Far, timeout: float = 60.0) -> Front:
    made = Front(SPLIT)
    made.toys = far
    config = Config(server=ServerConfig(engine_timeout_seconds=timeout))
    made.cluster = Cluster(config, SPLIT, far)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("allowed", [120, 700, 2_000, 6_000])
def test_a_cut_in_the_middle_of_a_state_costs_nobody_a_token(allowed: int) -> None:
    async def scene() -> None:
        far = Far(allowed, "cut")
        async with front(far) as cut:
            for i, prompt in enumerate(PROMPTS):
                cut.ask(str(i), prompt)
            await cut.all_done(len(PROMPTS))
            assert far.wires[0].struck.is_set()
            assert right(cut)
            await cut.clean()

    play(scene)


def test_a_state_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "SECONDS", 0.3)

    async def scene() -> None:
        far = Far(2_000, "stall")
        async with front(far) as stalled:
            for i, prompt in enumerate(PROMPTS):
                stalled.ask(str(i), prompt)
            await stalled.until(far.wires[0].struck.is_set)
            far.wires[0].allowed = None  # the next connection works
            await stalled.all_done(len(PROMPTS))
            assert right(stalled)
            await stalled.clean()

    play(scene)


def test_an_engine_that_cannot_be_heard_is_replaced() -> None:
    """Its connection is there, and nothing passes: only the missing sign of life tells."""

    async def scene() -> None:
        far = Far(3_000, "stall", router=True)
        async with front(far, timeout=1.5) as deaf:
            for i, prompt in enumerate(PROMPTS):
                deaf.ask(str(i), prompt)
            await deaf.all_done(len(PROMPTS))
            assert far.wires[0].struck.is_set()
            assert deaf.cluster.members[0].restarts >= 1
            assert right(deaf)
            await deaf.clean()

    play(scene)


def test_a_link_that_crawls_only_takes_longer() -> None:
    async def scene() -> None:
        async with front(Far(1, "crawl")) as slow:
            for i, prompt in enumerate(PROMPTS):
                slow.ask(str(i), prompt)
            await slow.all_done(len(PROMPTS))
            assert right(slow)

    play(scene)


def test_callers_who_do_not_belong_there_change_nothing() -> None:
    async def scene() -> None:
        async with Front(SPLIT) as ours:
            address = ours.toys.workers[0].address
            with pytest.raises(OSError, match=r"closed|reset|secret"):
                await asyncio.to_thread(call, address, b"another secret", b"e")
            for rubbish in (b"", b"GET / HTTP/1.1\r\n\r\n" + bytes(200), bytes(4096)):
                with socket.create_connection(address) as sock:
                    sock.sendall(rubbish)
            for i, prompt in enumerate(PROMPTS):
                ours.ask(str(i), prompt)
            await ours.all_done(len(PROMPTS))
            assert right(ours)

    play(scene)


# ---- the door and what passes through it


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


@pytest.mark.parametrize("secret", [b"right", b"wrong"])
def test_both_sides_prove_that_they_know_the_secret(secret: bytes) -> None:
    found: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            far, _ = listener.accept()
            with far:
                try:
                    found.append(answer(far, b"right"))
                except OSError as e:
                    found.append(e)

        thread = threading.Thread(target=listen)
        thread.start()
        address = Address(*listener.getsockname()[:2])
        if secret == b"right":
            call(address, secret, b"s").close()
        else:
            with pytest.raises(OSError, match=r"closed|reset"):
                call(address, secret, b"s")
        thread.join(5)
    assert found[0] == b"s" if secret == b"right" else isinstance(found[0], NotAdmitted)


def test_a_listener_that_does_not_know_the_secret_is_not_believed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def lie() -> None:
            far, _ = listener.accept()
            with far:
                far.sendall(bytes(door.NONCE))
                door.exactly(far, door.NONCE + door.PROOF + 1)
                far.sendall(bytes(door.PROOF))

        thread = threading.Thread(target=lie)
        thread.start()
        with pytest.raises(NotAdmitted, match="does not know this cluster's secret"):
            call(Address(*listener.getsockname()[:2]), b"right", b"s")
        thread.join(5)


def test_states_arrive_as_they_were_sent() -> None:
    rng = np.random.default_rng(0)
    state = {
        "kv": Blob("toy/1", 130, {"pages": rng.integers(0, 256, (3, 5000), np.uint8), "at": np.arange(3)}),
        "more": Blob("x", 7, {"empty": np.empty((0, 4), np.float32), "one": np.array([1.5], np.float32)}),
    }
    near, far = pair()
    with near, far:
        sender = threading.Thread(target=states.send, args=(near, state))
        sender.start()
        found = states.receive(far, 1 << 20)
        sender.join(5)
    assert found.keys() == state.keys()
    for name, blob in state.items():
        assert (found[name].layout, found[name].units) == (blob.layout, blob.units)
        for key, array in blob.data.items():
            np.testing.assert_array_equal(found[name].data[key], array)


@pytest.mark.parametrize(
    "parts",
    [
        [["a", "float32", [1 << 40]]],
        [["a", "uint8", [2000]]],
        [["a", "object", [1]]],
        [["a", "float32", [-1, 5]]],
        [["a", "uint8", [1] * 9]],
    ],
)
def test_states_that_claim_too_much_are_not_believed(parts: Sequence[Any]) -> None:
    import msgspec

    head = msgspec.msgpack.encode([states.Head("kv", "toy", 1, [states.Part(*p) for p in parts])])
    near, far = pair()
    with near, far:
        near.sendall(len(head).to_bytes(8, "little") + head)
        with pytest.raises(ValueError, match=r"none of ours|room for 1000"):
            states.receive(far, 1000)


@pytest.mark.parametrize("data", [(1 << 50).to_bytes(8, "little"), (4).to_bytes(8, "little") + b"\xc1\xc1\xc1\xc1"])
def test_rubbish_is_no_state(data: bytes) -> None:
    near, far = pair()
    with near, far:
        near.sendall(data)
        with pytest.raises(ValueError):
            states.receive(far, 1000)


def test_a_slow_link_lets_so_many_bytes_pass_in_a_second() -> None:
    clock, slept = [0.0], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    link = states.TokenBucket(1000.0, 100.0, lambda: clock[0], sleep)
    for _ in range(50):
        link.take(100)
    assert clock[0] == pytest.approx(4.9)  # 5,000 bytes, of which 100 passed at once
    clock[0] += 60
    link.take(100)
    assert len(slept) == 49  # a pause does not save up more than the burst
