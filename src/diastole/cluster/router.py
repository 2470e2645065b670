"""Router: several engines behind the face of one (``frontend.link.Link``), so that the server needs to know nothing.

With members of the role "both" each request goes to one of them: to who has least to read, counting what it has read
before as read. With "prefill" and "decode" a request is read, and says its first token, at a prefill member, is held
there, and goes on at the decode member that has fewest, which fetches its state (DistServe, arXiv 2401.09670, section
4). A request for several texts is read where it is decoded. Live streams and pictures end where they began
(``staying``).

When a member dies, what it ran is run again elsewhere with what was said so far, and nothing is said twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from diastole.cluster.affinity import Affinity
from diastole.cluster.asking import Asking
from diastole.cluster.door import new_secret
from diastole.cluster.journal import Journal, Wish
from diastole.cluster.members import Member, Role
from diastole.cluster.merging import merged
from diastole.cluster.placing import Placer
from diastole.cluster.rings import Split
from diastole.cluster.staying import Staying
from diastole.cluster.watching import Watching
from diastole.cluster.worker import Start
from diastole.config import Config, to_toml
from diastole.frontend import wire
from diastole.types import UserError

if TYPE_CHECKING:
    from diastole.cluster.replanning import Replanning

log = logging.getLogger("diastole.cluster")


class Cluster:
    """A ``Link`` to several engines.

    Args:
        roles: of the members, in order.
        placer: where they run; it is closed at the end.
        cpus: by member, the processors to run on; empty: as they come.
        rate: bytes per second at which states leave a member, to see what a slow network does; 0: as fast as they can.
        replanning: decides anew who reads prompts and who decodes; None: that stays as it is.
        ffn: each member's FFNs have a process of their own; None: they do not.

    Raises:
        UserError: these roles make no cluster.
    """

    def __init__(
        self,
        config: Config,
        roles: Sequence[Role],
        placer: Placer,
        cpus: Sequence[list[int]] = (),
        rate: float = 0.0,
        replanning: Replanning | None = None,
        ffn: Split | None = None,
    ) -> None:
        kinds = set(roles)
        if kinds not in ({"both"}, {"prefill", "decode"}):
            message = "a cluster has replicas, or at least one prefill and one decode member, and not both kinds"
            raise UserError(message, param="roles")
        self.split, self._replanning = "prefill" in kinds, replanning
        self.journal, self.affinity = Journal(), Affinity()
        self._placer = placer
        toml, secret, timeout = to_toml(config), new_secret(), config.server.engine_timeout_seconds
        self.members = [
            Member(
                f"{role if replanning is None else 'engine'}-{i}",
                role,
                placer,
                Start(toml, secret, cpus=cpus[i] if i < len(cpus) else [], rate=rate, moves=self.split, ffn=ffn),
                timeout,
                self._heard,
                self._changed,
            )
            for i, role in enumerate(roles)
        ]
        self.watching = Watching([m.name for m in self.members])
        self._on_reply: Callable[[wire.Reply], None] = lambda reply: None
        self.staying = Staying(self.members, self._running, lambda reply: self._on_reply(reply))
        self._asking = Asking(self.members)
        self._looking: asyncio.Task[None] | None = None
        self._filled: set[str] = set()  # services that settle the places of a text in any order

    # ---- as a link

    async def start(self, on_reply: Callable[[wire.Reply], None], on_loss: Callable[[], None]) -> wire.Ready:
        """Raises:
        UserError: a member cannot start, and why.
        """
        self._on_reply, self._on_loss = on_reply, on_loss
        ready = await asyncio.gather(*(m.begin() for m in self.members), return_exceptions=True)
        for failure in ready:
            if isinstance(failure, BaseException):
                self.kill()
                raise failure
        cards = _least([r for r in ready if isinstance(r, wire.Ready)])
        self._filled = {card.name for card in cards if isinstance(card, wire.Card) and card.fills}
        if self._replanning is not None:
            self._looking = asyncio.create_task(self._look(self._replanning))
        return wire.Ready(cards, ready[0].kernels)  # type: ignore[union-attr]

    def put(self, command: wire.Command) -> None:
        match command:
            case wire.Add() | wire.Embed():
                self._begin(self.journal.open(command, command.service not in self._filled))
            case wire.Open() | wire.Paint():
                self.staying.open(command)
            case wire.Feed():
                self.staying.feed(command)
            case wire.Abort():
                self.staying.abort(command)
                self._abort(command)
            case wire.Ping():
                self._on_reply(wire.Pong())  # members are asked by whom they belong to
            case wire.Measure():
                self._asking.ask(wire.Stats, lambda member: command, self._measured)
            case wire.Trace(since):
                known = self.watching.since(since)
                trace = lambda member: wire.Trace(known.get(member.name, 0))  # noqa: E731
                self._asking.ask(wire.Traced, trace, partial(self._traced, known))
            case wire.Reload():
                message = "a cluster's services are loaded anew by starting it anew"
                self._on_reply(wire.NotReloaded(command.service, message, code="reload_in_cluster"))
            case wire.Quit():
                if command.now:
                    self.staying.end()
                    for wish in self.journal:
                        self._drop(wish)

    async def stop(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        await asyncio.gather(*(m.end() for m in self.members), return_exceptions=True)
        await asyncio.to_thread(self._placer.close)

    def kill(self) -> None:
        for member in self.members:
            member.kill()

    def alive(self) -> bool:
        return not all(m.given_up for m in self.members)

    def processes(self) -> Sequence[int]:
        return [pid for m in self.members for pid in m.processes()]

    def ending(self) -> str:
        return "all engines of the cluster were given up"

    # ---- who runs what

    def _begin(self, wish: Wish) -> None:
        """Give it to whom it suits; if nobody of that role is there, it waits until somebody is."""
        hold = self.split and wish.single
        role: Role = "both" if not self.split else "prefill" if hold or isinstance(wish.add, wire.Embed) else "decode"
        there = [m for m in self.members if m.role == role and m.there]
        if not there:
            self._nobody(wish, role)
            return
        read = self.affinity.matched(wish.keys, [m.name for m in there])
        queue = {m.name: 0 for m in there}
        for other in self.journal:
            if other.at is not None and other.at.name in queue and not other.said:
                queue[other.at.name] += other.tokens
        running = {m.name: self._running(m) + self.staying.at(m) for m in there}
        wish.at = min(there, key=lambda m: (queue[m.name] - read[m.name], running[m.name], m.name))
        self.affinity.had(wish.keys, wish.at.name)
        wish.at.put(wish.command(self.journal.now(), hold))

    def _running(self, member: Member) -> int:
        return sum(w.at is member for w in self.journal)

    def _move(self, wish: Wish) -> None:
        """Let the decode member that has fewest take it over."""
        there = [m for m in self.members if m.role == "decode" and m.there]
        if not there:
            self._nobody(wish, "decode")
            return
        assert wish.at is not None
        load = {m.name: sum(m in (w.at, w.heading) for w in self.journal) for m in there}
        wish.heading = min(there, key=lambda m: (load[m.name], m.name))
        add = wish.command(self.journal.now(), hold=False)
        assert isinstance(add, wire.Add)
        host, port = wish.at.address
        wish.heading.put(wire.Fetch(add, host, port, wish.name, wish.held))

    def _again(self, wish: Wish, why: str) -> None:
        """What it had is lost: run it again, with what was said."""
        log.warning("request %.80s is run again: %s", wish.add.id, why)
        if wish.again():
            self._begin(wish)
        else:
            self._over(wish, wire.Over(wish.add.id, "error"))

    def _nobody(self, wish: Wish, role: Role) -> None:
        """It waits for a member of this role, unless none will come."""
        if all(m.given_up for m in self.members if m.role == role):
            self._over(wish, wire.Over(wish.add.id, "error"))

    def _over(self, wish: Wish, reply: wire.Reply) -> None:
        self._drop(wish)
        self._on_reply(reply)

    def _drop(self, wish: Wish) -> None:
        """Nobody needs it any more."""
        self.journal.close(wish)
        for member in (wish.at, wish.heading):
            if member is not None and member.there:
                member.put(wire.Abort(wish.name))

    def _abort(self, command: wire.Abort) -> None:
        wish = self.journal.get(command.id)
        if wish is None:
            return
        if command.choice is not None:
            wish.ended.add(command.choice)
        if command.choice is None or wish.over:
            self.journal.close(wish)
        for member in (wish.at, wish.heading):
            if member is not None and member.there:
                member.put(msgspec.structs.replace(command, id=wish.name))

    # ---- what members say

    def _heard(self, member: Member, reply: wire.Reply) -> None:
        match reply:
            case wire.Heard(spoken):
                self._speak(spoken)
            case wire.Held(name, units):
                if (wish := self.journal.named(name)) is not None:
                    wish.held = units
                    self._move(wish)
                else:
                    member.put(wire.Abort(name))
            case wire.Took(name):
                self._took(member, name)
            case wire.Lost(name, why):
                if (wish := self.journal.named(name)) is not None:
                    if wish.at is not None and wish.at.there:
                        wish.at.put(wire.Abort(name))
                    self._again(wish, why)
            case wire.Vector(name):
                if (wish := self.journal.named(name)) is not None:
                    self.journal.close(wish)
                    self._on_reply(msgspec.structs.replace(reply, id=wish.add.id))
            case wire.Opened() | wire.Beat() | wire.Painted() | wire.Unfed():
                self.staying.heard(member, reply)
            case wire.Refused(name) | wire.Over(name):
                if not self.staying.ended(member, reply) and (wish := self.journal.named(name)) is not None:
                    self.journal.close(wish)
                    self._on_reply(msgspec.structs.replace(reply, id=wish.add.id))
            case wire.Stats() | wire.Traced():
                self._asking.heard(member, reply)

    def _speak(self, spoken: Sequence[wire.Spoken]) -> None:
        new = []
        for one in spoken:
            wish = self.journal.named(one.id)
            if wish is None:
                continue
            if (fresh := wish.heard(one)) is not None:
                new.append(fresh)
            if wish.over:
                self.journal.close(wish)
                self._ended(wish)
        if new:
            self._on_reply(wire.Heard(new))

    def _took(self, member: Member, name: str) -> None:
        wish = self.journal.named(name)
        if wish is None:  # it was given up meanwhile
            member.put(wire.Abort(name))
            return
        before, wish.at, wish.heading, wish.held = wish.at, member, None, 0
        if before is not None and before.there:
            before.put(wire.Release(name))

    def _changed(self, member: Member) -> None:
        """A member is lost, back, or given up."""
        if member.there:
            self._offer()
            self.staying.changed(member)
            return
        self.affinity.forget(member.name)
        self._asking.lost(member)
        for wish in self.journal:
            if wish.heading is member:
                wish.heading = None
                if wish.at is not None and wish.at.there:
                    self._move(wish)
                else:
                    self._again(wish, f"{member.name} was lost")
            elif wish.at is member:
                if wish.heading is not None and wish.heading.there:
                    wish.heading.put(wire.Abort(wish.name))  # whether it has the state or not
                self._again(wish, f"{member.name} was lost")
            elif wish.at is None:  # it waits on, or nobody is left who could do it
                self._begin(wish)
            elif wish.held and wish.heading is None:
                self._move(wish)
        self.staying.changed(member)
        if not self.alive():
            self._on_loss()

    def _offer(self) -> None:
        """There is somebody new to begin or to go on with what waits."""
        for wish in self.journal:
            if wish.at is None:
                self._begin(wish)
            elif wish.held and wish.heading is None:
                self._move(wish)

    # ---- who does what

    def _ended(self, wish: Wish) -> None:
        """It has its whole answer."""
        if self._replanning is not None and wish.single and isinstance(wish.add, wire.Add):
            said = len(wish.said.get(0, ()))
            self._replanning.ended(wish.add.service, wish.tokens, said, wish.add.slo)

    async def _look(self, replanning: Replanning) -> None:
        """Decide anew who reads prompts and who decodes, as often as another load comes."""
        while True:
            await asyncio.sleep(replanning.seconds)
            if not (replanning.due() and all(m.there for m in self.members)):
                continue
            try:
                await self._replan(replanning)
            except Exception:  # a defect of ours: the cluster goes on as it is
                log.exception("who reads prompts and who decodes could not be decided anew")

    async def _replan(self, replanning: Replanning) -> None:
        answers: asyncio.Future[Mapping[str, wire.Stats]] = asyncio.get_running_loop().create_future()
        tell = lambda found: None if answers.done() else answers.set_result(found)  # noqa: E731
        self._asking.ask(wire.Stats, lambda member: wire.Measure(), tell)
        engines = replanning.engines([a.services for a in (await answers).values()])
        reading = sum(m.role == "prefill" for m in self.members)
        if engines is not None:
            self._deal_out(await asyncio.to_thread(replanning.plan, engines, len(self.members), reading))

    def _deal_out(self, prefills: int) -> None:
        """So many read prompts from now on, the others decode. What they run they bring to its end."""
        reading = [m for m in self.members if m.role == "prefill"]
        role: Role = "decode" if len(reading) > prefills else "prefill"
        others = [m for m in self.members if m.role != role]
        for member in sorted(others, key=self._running)[: abs(len(reading) - prefills)]:
            log.info("%s is one of the %s engines from now on", member.name, role)
            member.role = role
        self._offer()

    def _measured(self, answers: Mapping[str, wire.Stats]) -> None:
        self._on_reply(wire.Stats(merged([a.services for a in answers.values()])))

    def _traced(self, known: Mapping[str, int], answers: Mapping[str, wire.Traced]) -> None:
        views = {name: a.view for name, a in answers.items()}
        self._on_reply(wire.Traced(self.watching.merged(views, known)))


def _least(ready: Sequence[wire.Ready]) -> list[wire.AnyCard]:
    """Cards of services that all members have; of texts, with the room of the one that has least."""
    cards = {c.name: c for c in ready[0].cards}
    for other in ready[1:]:
        for card in other.cards:
            match card, cards[card.name]:
                case wire.Card(room=room), wire.Card(room=least) if room < least:
                    cards[card.name] = card
    return list(cards.values())
