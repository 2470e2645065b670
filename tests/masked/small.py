"""Small masked models with random weights, as checkpoints and as services on a fake clock, and slow twins of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from diastole.clock import FakeClock
from diastole.config import ServiceConfig
from diastole.engine.dispatch import LeastSlack
from diastole.engine.engine import Engine
from diastole.engine.executor import Simulated
from diastole.engine.masked import assemble_masked
from diastole.engine.service import Service
from diastole.kernels.table import load
from diastole.loops.settling import candidates, surest, uniforms
from diastole.nn.linear import Loader
from diastole.params import SamplingParams, Unmasking
from diastole.recipes import masked_lm
from diastole.recipes.shipping import write_model
from diastole.types import SLO, Array, Event, Request
from diastole.weights import open_checkpoint

SIZES = masked_lm.Sizes(d_model=64, n_layers=2, n_heads=2, mlp_hidden_size=96, max_sequence_length=256)
PLAN = masked_lm.Plan(sizes=SIZES)
END, MASK = PLAN.end, PLAN.mask


@cache
def net() -> masked_lm.Net:
    """Random, and so that tokens depend on their surroundings."""
    torch.manual_seed(1)
    made = masked_lm.Net(SIZES)
    with torch.no_grad():
        for p in made.parameters():
            if p.ndim > 1:
                p.mul_(6.0)
    return made.eval()


QWEN = {"attn_norm": "input_layernorm", "ff_norm": "post_attention_layernorm", "attn_out": "self_attn.o_proj"}
QWEN |= {f"{n}_proj": f"self_attn.{n}_proj" for n in "qkv"}
QWEN |= {"ff_proj": "mlp.gate_proj", "up_proj": "mlp.up_proj", "ff_out": "mlp.down_proj"}


class _Renamed(torch.nn.Module):
    """The same weights by Qwen2's names."""

    def state_dict(self, *args: Any, **more: Any) -> dict[str, Any]:  # type: ignore[override]
        found = {}
        for name, x in net().state_dict().items():
            parts = name.removeprefix("model.transformer.").split(".")
            if parts[0] == "blocks":
                found[f"model.layers.{parts[1]}.{QWEN[parts[2]]}.weight"] = x
            else:
                tops = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
                found[f"{tops[parts[0]]}.weight"] = x
        return found


def written(out: Path, shift: int = 0, **more: Any) -> Path:
    """As a directory: by LLaDA's names, or Dream's."""
    masked_lm.write(net(), PLAN, out, {}, torch.float32)
    if shift or more:
        s = SIZES
        config = {
            "model_type": "Dream", "hidden_size": s.d_model, "intermediate_size": s.mlp_hidden_size,
            "num_hidden_layers": s.n_layers, "num_attention_heads": s.n_heads, "num_key_value_heads": s.n_heads,
            "vocab_size": s.embedding_size, "max_position_embeddings": s.max_sequence_length,
            "rms_norm_eps": s.rms_norm_eps, "rope_theta": s.rope_theta, "mask_token_id": MASK, **more,
        }  # fmt: skip
        write_model(out, config, _Renamed(), {})
    return out


def service(place: Path, *use: str, memory: int = 16 << 20, streams: int = 8) -> Service:
    """Of a model that was written there, in float32 throughout."""
    settings = ServiceConfig(model="small", use=use, kv="f32", max_streams=streams)
    checkpoint = open_checkpoint(place)
    return assemble_masked("small", Loader(load(1), checkpoint, "f32"), settings, frozenset({END}), memory)


def params(most: int = 24, steps: int | None = None, seed: int = 0, temperature: float = 0.0, **more: Any) -> Any:
    """Of a request whose text is not ended by any token."""
    rest = {k: more.pop(k) for k in ("ignore_eos", "stop_token_ids", "stop") if k in more}
    given = {"ignore_eos": True, **rest}
    unmasking = Unmasking(steps=steps, **more)
    return SamplingParams(max_tokens=most, temperature=temperature, seed=seed, unmasking=unmasking, **given)


def prompt(n: int, seed: int = 0) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(0, 256, n)]


class Life:
    """A service with an engine on a fake clock, and what its requests have said."""

    def __init__(self, of: Service) -> None:
        self.clock = FakeClock()
        self.service, self.engine = of, Engine([of], self.clock, LeastSlack(), Simulated(self.clock))
        self.said: dict[str, list[int]] = {}
        self.places: dict[str, dict[int, int]] = {}
        self.last: dict[str, Event] = {}

    def ask(self, id: str, tokens: Sequence[int], wish: SamplingParams, slo: SLO | None = None) -> None:
        self.engine.add(Request(id, "small", tuple(tokens), wish, slo or SLO()))

    def step(self) -> list[Event]:
        events = self.engine.step() or []
        for event in events:
            self.last[event.id] = event
            self.said.setdefault(event.id, []).extend(c.id for c in getattr(event.data, "chosen", ()))
            self.places.setdefault(event.id, {}).update(getattr(event.data, "settled", ()))
        return events

    def finish(self, steps: int = 4_000) -> Life:
        for _ in range(steps):
            if not self.engine.busy:
                return self
            self.step()
        raise AssertionError("a stream is stuck")

    def check(self) -> None:
        wrong: list[str] = []
        ledger = self.service.ledger
        ledger.check(wrong.append)
        for name, pool in ledger.pools.items():
            pool.check([s.leases[name] for s in ledger.running if name in s.leases], wrong.append)
        assert not wrong, wrong
        if not self.engine.busy:
            assert self.service.pages()[0] == 0


def alone(of: Service, tokens: Sequence[int], wish: SamplingParams) -> list[int]:
    """What is said with nobody else there."""
    life = Life(of)
    life.ask("a", tokens, wish)
    life.finish()
    life.check()
    return life.said["a"]


# ---- slow twins


class Kept:
    """The torch model, run over some places only: the others' keys and values are those of when they ran last."""

    def __init__(self) -> None:
        self._kv: list[tuple[torch.Tensor, torch.Tensor]] = []

    @torch.no_grad()
    def __call__(self, ids: Array, rows: Array) -> Array:
        """ids (L,); rows (k,) -> logits (k, V)."""
        model = net()
        parts: Any = model.model["transformer"]
        d = SIZES.d_model // SIZES.n_heads
        at = torch.from_numpy(np.asarray(rows, np.int64))
        angle = at[:, None] * SIZES.rope_theta ** (-torch.arange(0, d, 2) / d)
        cos, sin = angle.cos(), angle.sin()
        x = parts["wte"](torch.from_numpy(np.asarray(ids, np.int64)))[at]
        for i, layer in enumerate(parts["blocks"]):
            y = layer.attn_norm(x)
            q, k, v = (p(y).view(len(at), layer.heads, -1) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
            q, k = (masked_lm.rotated(z.transpose(0, 1), cos, sin).transpose(0, 1) for z in (q, k))
            if len(self._kv) <= i:
                empty = torch.full((len(ids), layer.heads, d), torch.nan)
                self._kv.append((empty, empty.clone()))
            keys, values = self._kv[i]
            keys[at], values[at] = k, v
            seen = F.scaled_dot_product_attention(q.transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1))
            x = x + layer.attn_out(seen.transpose(0, 1).reshape(len(at), -1))
            y = layer.ff_norm(x)
            x = x + layer.ff_out(F.silu(layer.ff_proj(y)) * layer.up_proj(y))
        found: Array = parts["ff_out"](parts["ln_f"](x)).numpy()
        return found


Rows = Callable[[int, Array, Array, Array], Array]  # of a step, given masked (L,), what was settled last, and next


def everything(step: int, masked: Array, latest: Array, chosen: Array) -> Array:
    return np.arange(len(masked))


def slowly(tokens: Sequence[int], wish: SamplingParams, shift: int = 0, rows: Rows = everything) -> list[int]:
    """The text, place by place, as the papers write it down."""
    unmasking = wish.unmasking or Unmasking()
    length = wish.max_tokens or 0
    blocks, steps = unmasking.blocks(length)
    size, seed = length // blocks, wish.seed or 0
    ids = np.array([*tokens, *[MASK] * length])
    masked = np.arange(len(ids)) >= len(tokens)
    rank = uniforms(seed, 0, np.arange(len(ids)))
    model, latest, step = Kept(), np.empty(0, int), 0
    for block in range(blocks):
        lo = len(tokens) + block * size
        quota, more = divmod(size, steps)
        for nth in range(steps):
            n = quota + (nth < more)
            places = lo + np.flatnonzero(masked[lo : lo + size])
            if unmasking.remasking == "random":
                places = np.sort(places[np.argsort(-rank[places])[:n]])
            wanted = np.arange(len(ids)) if nth == 0 else rows(step, masked, latest, places)
            run = np.union1d(wanted, places - shift)
            logits = model(ids, run)[np.searchsorted(run, places - shift)]
            logits[:, MASK] = -np.inf
            found, sure = candidates(logits, wish, unmasking.remasking, uniforms(seed, 1 + step, places))
            best = surest(sure, n)
            latest = places[best]
            ids[latest], masked[latest] = found[best], False
            step += 1
    return [int(x) for x in ids[len(tokens) :]]
