"""From a checkpoint and settings to a service that can run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from diastole import registry
from diastole.config import ServiceConfig
from diastole.engine.admission import Admission
from diastole.engine.compose import Mixed
from diastole.engine.cost import FittedCost
from diastole.engine.ledger import Ledger
from diastole.engine.peak import Now, Peak
from diastole.engine.service import Service
from diastole.loops.ar import AutoRegressive
from diastole.loops.drafting import Drafting
from diastole.metrics import Meter
from diastole.nn.inside import Inside
from diastole.nn.linear import Loader
from diastole.slots import CostModel, KVStore, Punctual, Revocable
from diastole.slots_drafts import Drafter, Haltable, Span
from diastole.spec.pace import Unpaced
from diastole.spec.verify import Coupled
from diastole.state.host import HostTier
from diastole.state.kv import PagedKV
from diastole.state.pages import PAGE, PagePool
from diastole.state.prefix import PrefixCache
from diastole.text.grammar import Grammars
from diastole.types import KVFormat, PagedSpec, UserError

if TYPE_CHECKING:
    from diastole.kernels.table import Ops
    from diastole.text.tokenizer import Tokenizer

READS = frozenset(  # slots of a language model
    {"kv", "select", "kernel", "probe", "refresh", "evict", "ingest", "absorb", "compose"}
    | {"draft", "verify", "pace", "halt"}
)
TRACED = frozenset({"kv", "select", "kernel", "probe", "refresh", "evict", "ingest"})  # slots that see a stream's rows
ALONE = frozenset({"select", "probe", "refresh", "evict", "ingest", "draft"})  # slots that look at a step as a whole


def assemble(
    name: str,
    load: Loader,
    config: ServiceConfig,
    eos: frozenset[int],
    memory: int,
    swap: int,
    tokenizer: Callable[[], Tokenizer] | None = None,
    admission: Admission | None = None,
    peak: bool = False,
) -> Service:
    """A language model service.

    Args:
        load: reads the weights.
        eos: ids that end a text, as the tokenizer knows them.
        memory: bytes for key/value pages, at most.
        swap: bytes for the packed state of preempted streams.
        tokenizer: gives the model's, when the first grammar comes; None: requests may bring none.
        admission: who of those who wait comes next; None: who came first.
        peak: streams are let in only if all are expected to have room until they end.

    Raises:
        UserError: the model, a setting or the room does not fit; ``param`` names it.
    """
    ops, checkpoint = load.ops, load.checkpoint
    architecture = registry.model(str(checkpoint.config.get("model_type")))
    model = architecture.build(load, checkpoint.config, config.context)
    facts = replace(model.facts(checkpoint), streams=config.max_streams)
    stack = registry.build(config.use, {"compose": Mixed(config.step_tokens)}, facts, READS)
    kv = store(stack, config.kv)
    _check_absorber(stack, kv)
    spec: PagedSpec = model.state_specs()["kv"]
    pages = pages_for(ops, kv, spec, model.context, config.max_streams, memory)
    kv.alloc(spec, pages, ops)
    block = math.lcm(*(policy.block for policy in stack.ingest))
    pool = PagePool(pages, kv, PrefixCache(PAGE, block) if config.prefix_cache else None, kv.rooms)
    fingerprint = f"{checkpoint.fingerprint}/{kv.layout}/{stack.fingerprint}"
    grammars = None if tokenizer is None else Grammars(tokenizer, model.vocab)
    stepwise = stack.select is not None and not stack.select.exact
    cost, meter = FittedCost(), Meter()
    spans = _spans(stack, kv)
    loop = _loop(stack, kv, spans, cost, meter)(
        pool,
        model.context,
        model.vocab,
        eos,
        fingerprint,
        model.width,
        grammars,
        stepwise,
        stack.refresh,
        block,
        None if kv.passive else kv,
        stack.absorb,
    )
    drafts = {} if stack.draft is None else stack.draft.settle(kv, config.max_streams, spans)
    absorbs = {} if stack.absorb is None else stack.absorb.settle(kv, pages)
    pools = {"kv": pool, **kv.pools, **drafts, **absorbs}
    room = Peak(pages, loop.most) if peak else Now()
    ledger = Ledger(loop, pools, cost, meter, HostTier(swap) if swap else None, config.max_streams, admission, room)
    state = {"kv": kv, "inside": Inside(stack.select, stack.kernel, stack.probe)}
    return Service(name, model, loop, state, stack.compose, cost, ledger, meter, stack.pace)


def _loop(
    stack: registry.Stack, kv: KVStore, spans: Sequence[Span], cost: CostModel, meter: Meter
) -> Callable[..., AutoRegressive]:
    """What makes the loop: one that drafts if anybody does.

    Raises:
        UserError: what paces or verifies drafts has none, the drafter finds no keys and values to look at, or somebody
            cannot forget guesses that were wrong.
    """
    if stack.draft is None:
        for slot in ("verify", "pace"):
            if slot in stack.owners:
                message = f"{stack.owners[slot]} needs something that drafts beside it, such as ngram"
                raise UserError(message, param="use", code="no_drafter")
        if stack.halt:
            raise UserError(
                f"{_who(stack, 'halt')} needs something that drafts beside it", param="use", code="no_drafter"
            )
        return AutoRegressive
    drafter: Drafter = stack.draft
    if drafter.looks and (kv.buffers is None or not kv.passive):
        message = f"{stack.owners['draft']} looks at keys and values where the model has written them, and "
        raise UserError(f"{message}{stack.owners['kv']} does not leave them there: use either", param="use")
    if stack.halt:
        if not isinstance(drafter, Haltable):
            message = f"{stack.owners['draft']} does not ask {_who(stack, 'halt')} when to stop: use either"
            raise UserError(message, param="use")
        drafter.halts = stack.halt
    for name, slot, policy in stack.filled:
        if slot in TRACED and not (isinstance(policy, Revocable) and policy.revocable):
            raise UserError(
                f"{stack.owners['draft']} guesses tokens, and {name} keeps traces of those that are taken back: "
                "use either",
                param="use",
            )
    verify = stack.verify or Coupled()
    inside = stack.select is not None or stack.kernel is not None or bool(stack.probe)
    return partial(
        Drafting,
        drafter=stack.draft,
        verify=verify,
        pace=stack.pace or Unpaced(),
        cost=cost,
        meter=meter,
        branches=kv.passive and kv.bare and not inside and not verify.ahead,  # a branch begins at the last known token
        spans=spans,
    )


def _check_absorber(stack: registry.Stack, kv: KVStore) -> None:
    """Raises:
    UserError: rows that are not the model's are written where somebody would not expect them.
    """
    if stack.absorb is None:
        return
    others = [name for name, slot, _ in stack.filled if slot in ALONE or (slot == "kv" and not kv.passive)]
    if others:
        message = f"{stack.owners['absorb']} runs some rows of a step apart, and {others[0]} looks at a step as a whole"
        raise UserError(f"{message}: use either", param="use")


def _spans(stack: registry.Stack, kv: KVStore) -> list[Span]:
    """Of all who act at certain positions, each once, however many slots it fills."""
    others = {id(policy): policy for _, _, policy in stack.filled if policy is not kv and isinstance(policy, Punctual)}
    own = [] if kv.passive else [kv.span]
    return [*own, *[policy.span for policy in others.values()]]


def _who(stack: registry.Stack, slot: str) -> str:
    """The techniques that fill a slot."""
    return " and ".join(name for name, filled, _ in stack.filled if filled == slot)


def store(stack: registry.Stack, kv: str) -> KVStore:
    """What keeps keys and values for these policies, in the form that the user names, or "auto".

    Raises:
        UserError: two of them do not go together.
    """
    select, owners = stack.select, stack.owners
    auto = "bf16" if select is None else select.prefers
    keeper: KVStore = stack.kv or PagedKV(cast(KVFormat, auto if kv == "auto" else kv))
    if select is not None:
        keeper.suit(select.prefers)
    whose = f"{owners['kv']} keeps" if "kv" in owners else f"kv = {kv!r} keeps"
    for slot in ("select", "kernel"):
        policy = getattr(stack, slot)
        if policy is not None and keeper.fmt not in policy.reads:
            raise UserError(
                f"{owners[slot]} cannot read keys and values as {whose} them, {keeper.fmt!r}: "
                f"it reads {', '.join(sorted(policy.reads))}",
                param="use",
            )
    if select is not None and select.companion is not None:
        keeper.attach(select.companion)
    return keeper


def pages_for(ops: Ops, kv: Any, spec: PagedSpec, context: int, streams: int, memory: int) -> int:
    """As many pages as the memory holds, but no more than all streams could ever fill."""
    kv.alloc(spec, 1, ops)  # tells bytes_per_token, which the store's layout decides
    page = int(kv.bytes_per_token * PAGE)
    most = streams * -(-context // PAGE)
    pages = min(memory // page, most)
    if pages < 2:
        raise UserError(
            f"{memory} bytes hold {pages} pages of {PAGE} tokens; give at least {2 * page} bytes", param="engine.memory"
        )
    return pages
