"""``diastole cluster``: several engines behind one server."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from diastole.cli.flags import configure, takes
from diastole.cli.pull import offer
from diastole.types import UserError

if TYPE_CHECKING:
    from diastole.cluster.members import Role
    from diastole.cluster.placing import Placer
    from diastole.cluster.replanning import Replanning
    from diastole.cluster.router import Cluster
    from diastole.config import Config

app = typer.Typer(
    help="Several engines behind one server: replicas, or prefill and decode apart.", no_args_is_help=True
)
GIGABIT = 1e9 / 8  # bytes per second


@app.command()
@takes("server", "engine", "service")
def up(
    target: Annotated[str | None, typer.Argument(metavar="MODEL | engine.toml", show_default=False)] = None,
    *,
    prefill: Annotated[int, typer.Option(min=0, max=1024, help="engines that read prompts")] = 0,
    decode: Annotated[int, typer.Option(min=0, max=1024, help="engines that go on where prompts were read")] = 0,
    replicas: Annotated[int, typer.Option(min=0, max=1024, help="engines that do both, instead of these")] = 0,
    address: Annotated[
        str, typer.Option(help="of a Ray cluster that runs: auto, host:port; empty: a Ray of this machine is started")
    ] = "",
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="without: processes of this machine")] = True,
    cpus: Annotated[float, typer.Option(min=0.0, help="that each engine asks Ray for")] = 1.0,
    link_gbit: Annotated[
        float, typer.Option(min=0.0, help="slow states down to a network of so many Gbit/s; 0: do not")
    ] = 0.0,
    ffn_apart: Annotated[
        bool, typer.Option("--ffn-apart", help="each engine keeps attention, and has its FFNs in a process beside it")
    ] = False,
    micro_batches: Annotated[
        int, typer.Option(min=1, max=16, help="of streams, that go between the two in turn, with --ffn-apart")
    ] = 3,
    transfer: Annotated[
        Literal["f32", "bf16"], typer.Option(help="what goes between them; bf16: half of the bytes, other texts")
    ] = "f32",
    replan: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="seconds between looks at the load: engines change between reading and decoding with it; 0: never",
        ),
    ] = 0.0,
    flags: dict[str, dict[str, Any]],
) -> None:
    """Serve with several engines: `--prefill 1 --decode 1` keeps reading prompts and decoding apart, `--replicas 2` has
    two engines do both. Where an engine dies, another takes its place, and no request is lost.

    All other flags are those of `diastole serve`. On one machine the engines share its cores evenly.
    """
    roles = roles_of(prefill, decode, replicas)
    if replan and (replicas or len(roles) < 3):
        raise UserError("--replan needs --prefill and --decode with three engines in all at least", param="replan")
    config = configure(target, flags)
    for service in config.service.values():
        offer(service.model)
    from diastole.frontend.backend import Backend
    from diastole.serve.run import serve as run

    shares = [] if address else shared_cores(len(roles))
    if shares and not config.engine.threads:
        config = replace(config, engine=replace(config.engine, threads=len(shares[0])))

    def connect(config: Config) -> Cluster:
        from diastole.cluster.rings import Split
        from diastole.cluster.router import Cluster

        placer, replanning = _placer(ray, address, cpus), _replanning(config, replan)
        ffn = Split(micro_batches, transfer) if ffn_apart else None
        return Cluster(config, roles, placer, shares, link_gbit * GIGABIT, replanning, ffn)

    if config.server.log_format == "text":
        print(f"starting {len(roles)} engines ...", file=sys.stderr, flush=True)
    run(Backend(config, partial(connect)), config.server)


def _replanning(config: Config, seconds: float) -> Replanning | None:
    """Of the first service."""
    if not seconds:
        return None
    from diastole.cluster.replanning import Replanning
    from diastole.frontend.assembly import slos

    return Replanning(seconds, *next(iter(slos(config).items())))


def roles_of(prefill: int, decode: int, replicas: int) -> list[Role]:
    """The members' roles.

    Raises:
        UserError: these numbers make no cluster.
    """
    if replicas and not (prefill or decode):
        return _each(replicas, "both")
    if prefill and decode and not replicas:
        return [*_each(prefill, "prefill"), *_each(decode, "decode")]
    message = "give --replicas N, or --prefill N and --decode M, each at least 1"
    raise UserError(message, param="prefill" if prefill or decode else "replicas")


def _each(count: int, role: Role) -> list[Role]:
    return [role] * count


def shared_cores(members: int) -> list[list[int]]:
    """The cores of this machine by member; where there are fewer than members, they share."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < members:
        return [[cores[i % len(cores)]] for i in range(members)]
    each = len(cores) // members
    return [_take(cores, i, each) for i in range(members)]


def _take(cores: Sequence[int], nth: int, each: int) -> list[int]:
    return list(cores[nth * each : (nth + 1) * each])


def _placer(ray: bool, address: str, cpus: float) -> Placer:
    if ray:
        from diastole.cluster.on_ray import OnRay

        return OnRay(address, cpus)
    if address:
        raise UserError("--address names a Ray cluster: leave --no-ray out", param="address")
    from diastole.cluster.placing import Here

    return Here()
