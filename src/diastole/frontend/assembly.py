"""From settings to an engine: finds the files, sizes the memory, loads the models."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

from diastole import registry
from diastole.assets import cache, resolve
from diastole.assets.models import open_model, tokenizer_of
from diastole.clock import RealClock
from diastole.config import Config, ServiceConfig, from_toml
from diastole.engine.admission import Admission, ByPriority, InOrder
from diastole.engine.assemble import assemble
from diastole.engine.denoise import assemble_denoise, rehearse_denoise
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.engine.live import assemble_live, rehearse
from diastole.engine.masked import assemble_masked, rehearse_masked
from diastole.engine.profile import CASES, SLICES, most_rows, profile
from diastole.engine.service import Service
from diastole.frontend.costs import CostFile, Learner
from diastole.frontend.host import Loaded
from diastole.frontend.loading import LoadingBar
from diastole.frontend.wire import AnyCard, Card, LiveCard, PictureCard, Reload
from diastole.kernels.cgroup import memory_left
from diastole.kernels.table import Ops, load, physical_cores, processor
from diastole.live import LiveModel
from diastole.loops.ar import AutoRegressive
from diastole.loops.denoise import Denoise
from diastole.loops.masked import Masked
from diastole.nn.linear import Loader, WeightFormat, packed_size
from diastole.nn.packs import NoPacks, PackFile, Packs
from diastole.params import MAX_PICTURE_STEPS
from diastole.slots import Budgeted
from diastole.state.pages import PAGE
from diastole.types import SLO, UserError
from diastole.weights import Checkpoint

SHARE = 0.25  # of the available memory goes to key/value pages, unless told


def service_name(key: str, config: ServiceConfig) -> str:
    """What requests call it: its own name, else its key in the configuration, else the model's."""
    path = Path(config.model)  # a directory's name may hold dots: Qwen2.5-0.5B
    return config.name or key or (path.stem if path.suffix == ".gguf" else path.name)


def build_engine(config: Config, costs: Path | None = None) -> tuple[Engine, list[AnyCard], str]:
    """Load every configured service.

    Args:
        costs: folder where what steps cost is kept between starts; None: nowhere.

    Returns:
        the engine, a card per service, and the name of the kernels in use.

    Raises:
        UserError: a setting or a model file is wrong.
    """
    _one_instruction_set(config)
    memory = _page_memory(config)  # before weights take any
    services: list[Service] = []
    cards: list[AnyCard] = []
    kernels = "none"
    for key, wanted in config.service.items():
        ops: Ops = load(config.engine.threads or None, wanted.kernels)
        kernels = ops.name
        service, card = _build(service_name(key, wanted), wanted, ops, memory, config, costs)
        services.append(service)
        cards.append(card)
    return Engine(services, RealClock(), LeastSlack()), cards, kernels


def cost_folder(config: Config) -> Path | None:
    """Where a server keeps what steps cost."""
    chosen = config.engine.costs
    return cache.root() / "costs" if chosen == "auto" else Path(chosen) if chosen else None


def load_service(reload: Reload) -> Loaded:
    """Load one service of a configuration, beside all that run.

    Raises:
        UserError: a setting or a model file is wrong, or there is no room for it beside the others.
    """
    config = from_toml(reload.toml)
    _one_instruction_set(config)
    wanted = next(s for key, s in config.service.items() if service_name(key, s) == reload.service)
    ops = load(config.engine.threads or None, wanted.kernels)
    pages = _page_memory(config)
    _check_room(reload.service, wanted, ops, pages)
    service, card = _build(reload.service, wanted, ops, pages, config, cost_folder(config))
    if other := _other(reload.card, card):
        message = f"{wanted.model} {other}: restart the server for that"
        raise UserError(message, param="model", code="model_changed")
    return Loaded(service, card, slos(config)[reload.service])


def _other(before: AnyCard, now: AnyCard) -> str:
    """What who talks to the service would have to hear of, in words; empty: nothing."""
    match before, now:
        case Card(), Card():
            return "" if now.vocab == before.vocab else f"has {now.vocab} tokens now and had {before.vocab}"
        case LiveCard(), LiveCard():
            took, takes = (f"{c.hop} samples of {', '.join(c.channels)} at {c.rate:g} Hz" for c in (before, now))
            return "" if takes == took else f"takes {takes} now and took {took}"
        case PictureCard(), PictureCard():
            return "" if now.size == before.size else f"makes pictures of {now.size} now and of {before.size} before"
    return "is a model of another kind now"


def _one_instruction_set(config: Config) -> None:
    """Raises:
    UserError: services ask for several instruction sets, of which a process runs one.
    """
    asked = {service_name(key, s): s.kernels for key, s in config.service.items() if s.kernels != "torch"}
    sets = {name: "auto" if kernels == "native" else kernels for name, kernels in asked.items()}
    if len(set(sets.values())) > 1:
        said = ", ".join(f"{name}: {kernels}" for name, kernels in asked.items())
        raise UserError(
            f"services of one server run on one instruction set: give all the same kernels ({said})", param="kernels"
        )


def _page_memory(config: Config) -> int:
    """Bytes for the key/value pages of one service."""
    return (int(config.engine.memory) or int(SHARE * available_memory())) // len(config.service)


def _check_room(name: str, wanted: ServiceConfig, ops: Ops, pages: int) -> None:
    """Refuse what would not fit beside what runs.

    Raises:
        UserError: it would not.
    """
    checkpoint = open_model(resolve(wanted.model))
    weights = packed_size(ops, checkpoint, cast(WeightFormat, wanted.weights))
    checkpoint.close()
    available = available_memory()
    if weights + pages > available:
        message = (
            f"loading {name} anew beside the one that runs needs {weights >> 20} MiB for weights and {pages >> 20} MiB "
            f"for pages, and {available >> 20} MiB are available: lower engine.memory, or restart the server"
        )
        raise UserError(message, param="engine.memory", code="not_enough_memory")


def _build(
    name: str, wanted: ServiceConfig, ops: Ops, memory: int, config: Config, costs: Path | None
) -> tuple[Service, AnyCard]:
    path = resolve(wanted.model)
    checkpoint = open_model(path)
    architecture = registry.model(str(checkpoint.config.get("model_type")))
    if hasattr(architecture, "live"):
        return _build_live(name, wanted, ops, architecture.live(ops, checkpoint), config)
    if hasattr(architecture, "denoiser"):
        return _build_pictures(name, wanted, architecture.denoiser(ops, checkpoint), config)
    fills = hasattr(architecture, "masked")
    eos = tokenizer_of(path).eos_ids
    weights = cast(WeightFormat, wanted.weights)
    with packs(checkpoint, weights, ops) as kept, LoadingBar(name) as bar:
        load_from = Loader(ops, checkpoint, weights, kept, bar.tell)
        tokenizer, policy = partial(tokenizer_of, path), admission(config)
        peak, swap = config.engine.admission_room == "peak", int(config.engine.swap)
        if fills:
            service = assemble_masked(name, load_from, wanted, eos, memory, policy)
        else:
            service = assemble(name, load_from, wanted, eos, memory, swap, tokenizer, policy, peak)
    checkpoint.close()
    loop = service.loop
    if isinstance(loop, Masked):
        rehearse_masked(service, loop, RealClock())
        room, order = loop.pool.pages * PAGE, priorities(config)
        return service, Card(name, loop.context, loop.vocab, room, 0, order, True, loop.refresh.approximate)
    assert isinstance(loop, AutoRegressive)
    cost = service.cost
    if costs is not None and isinstance(cost, Learner):
        threads = config.engine.threads or physical_cores()
        key = _hash(f"{loop.fingerprint}/{ops.name}/{threads}/{processor()}")
        file = CostFile(costs / f"{path.stem}-{key}.json")
        file.read(cost)
        service.keep = partial(file.write, cost)
    _measure(service, loop, wanted.max_streams)
    room = loop.pool.pages * PAGE
    return service, Card(name, loop.context, loop.vocab, room, loop.width, priorities(config))


def writes(path: Path) -> bool:
    """Whether the model that lies there writes texts.

    Raises:
        UserError: there is none that is known.
    """
    if not path.is_dir():
        return True
    checkpoint = open_model(path)
    try:
        module = registry.model(str(checkpoint.config.get("model_type")))
        return hasattr(module, "build") or hasattr(module, "masked")
    finally:
        checkpoint.close()


def _build_pictures(name: str, wanted: ServiceConfig, model: Any, config: Config) -> tuple[Service, PictureCard]:
    service = assemble_denoise(name, model, wanted, admission(config))
    loop = service.loop
    assert isinstance(loop, Denoise)
    rehearse_denoise(service, loop, RealClock(), wanted.max_streams)
    most = min(model.schedule.times, MAX_PICTURE_STEPS)
    return service, PictureCard(name, model.size, model.classes, model.names, most, loop.refresh.approximate)


def _build_live(
    name: str, wanted: ServiceConfig, ops: Ops, model: LiveModel, config: Config
) -> tuple[Service, LiveCard]:
    service = assemble_live(name, model, wanted, admission(config))
    rehearse(service, model, RealClock(), wanted.max_streams)
    signal, options = model.signal, model.options({})
    offered = {} if options is None else asdict(options)
    card = LiveCard(
        name,
        signal.rate,
        list(signal.channels),
        signal.hop,
        signal.window,
        signal.quantity,
        list(signal.kinds),
        offered,
        signal.unit,
    )
    return service, card


def _measure(service: Service, loop: AutoRegressive, streams: int) -> None:
    """What steps cost, as far as somebody has to know it before the first, and it is not known already.

    Raises:
        UserError: what somebody promises cannot be kept here.
    """
    cost = service.cost
    known = cost.knows if isinstance(cost, Learner) else lambda units: False
    if service.pace is not None and service.pace.foresees and not known(most_rows(CASES)):
        profile(service, loop.pool, RealClock(), loop.context, streams)
    if isinstance(service.compose, Budgeted):
        if not known(most_rows(SLICES)):
            profile(service, loop.pool, RealClock(), loop.context, streams, SLICES)
        service.compose.settle(cost, streams, loop.context)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


@contextmanager
def packs(checkpoint: Checkpoint, weights: WeightFormat, ops: Ops) -> Iterator[Packs]:
    """Where this checkpoint's matrices are kept between starts, in this format."""
    if not ops.layout:
        yield NoPacks()
        return
    key = _hash(f"{checkpoint.fingerprint}/{weights}/{ops.layout}")
    path = cache.root() / "packed" / f"{checkpoint.path.stem}-{weights}-{key}.pack"
    with PackFile(path, ops, partial(warnings.warn, stacklevel=2)) as found:
        yield found


def priorities(config: Config) -> bool:
    """Whether priorities of requests count."""
    return config.engine.admission == "priority"


def admission(config: Config) -> Admission:
    """Who of those who wait comes next."""
    return ByPriority(config.engine.admission_ageing_seconds) if priorities(config) else InOrder()


def slos(config: Config) -> dict[str, SLO]:
    """Default promises by service name."""
    return {service_name(k, s): SLO(s.slo.first, s.slo.gap) for k, s in config.service.items()}


def available_memory() -> int:
    """Bytes that could be taken without swapping, as the kernel estimates it (where it does not, all there are), and
    without meeting the limit of a container or service."""
    left = memory_left()
    return _free() if left is None else min(_free(), left)


def _free() -> int:
    estimates = Path("/proc/meminfo")
    for line in estimates.read_text().splitlines() if estimates.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
