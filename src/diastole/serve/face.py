"""Face: what every endpoint stands on: backend, settings, gate, keys, limits, counters, traces and running requests."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

from diastole.clock import RealClock
from diastole.serve.bodies import Bodies
from diastole.serve.ceilings import Ceilings
from diastole.serve.cors import check_origins
from diastole.serve.energy import host_energy
from diastole.serve.errors import ApiError
from diastole.serve.exchange import Exchange
from diastole.serve.forecast import Forecast
from diastole.serve.gate import Gate
from diastole.serve.interface import Backend, LiveService, PictureService, TextService
from diastole.serve.keys import Keyring, Limits
from diastole.serve.memory import MemoryWatch, own_memory, usual_limit
from diastole.serve.metrics import Traffic
from diastole.serve.quota import Quotas
from diastole.serve.running import Running
from diastole.serve.terms import Terms
from diastole.serve.tracing import Traces
from diastole.types import SLO, UserError

if TYPE_CHECKING:
    from diastole.config import ServerConfig


class Face:
    """Made once per server.

    Raises:
        UserError: a setting or the key file is wrong.
    """

    def __init__(self, backend: Backend, config: ServerConfig, traffic: Traffic, traces: Traces) -> None:
        self.backend, self.config, self.traffic, self.traces = backend, config, traffic, traces
        self._clock = RealClock()
        self.gate = Gate(config.max_queued)
        self.memory = MemoryWatch(int(config.max_resident) or usual_limit(), self._held, traffic.limit)
        self.running = Running()
        self.bodies = Bodies(config.max_body_bytes)
        check_origins(config.cors_origins)
        self.keyring = Keyring(config.api_key, config.api_key_file)
        if config.isolate_keys and self.keyring.empty:
            message = "server.isolate_keys needs keys to tell apart: set server.api_key or server.api_key_file"
            raise UserError(message, param="server.isolate_keys")
        usual = Limits(config.requests_per_minute, config.tokens_per_minute, config.concurrent_requests)
        self.quotas = Quotas(usual, self._clock, traffic.limit)
        energy = host_energy(self._clock) if config.max_joules else None
        self.ceilings = Ceilings(config.max_tokens, config.max_seconds, config.max_joules, energy, traffic.limit)
        self._forecasts: dict[str, Forecast] = {}

    def _held(self) -> int:
        """Bytes that this server holds, with all that work for it."""
        return sum(own_memory(pid) for pid in (os.getpid(), *self.backend.processes))

    def terms(self, exchange: Exchange, service: TextService, slo: SLO | None) -> Terms:
        """On what terms a request's generation runs. ``slo``: the promise that it asks for."""
        if service.name not in self._forecasts:
            self._forecasts[service.name] = Forecast(self._clock, self.traffic.limit)
        forecast = self._forecasts[service.name]
        promised = math.inf if slo is None else min(slo.first, slo.total or math.inf)
        most = min(self.config.max_wait_seconds or math.inf, promised)
        space = exchange.key.name if self.config.isolate_keys else None
        return Terms(
            exchange.account,
            self.ceilings,
            forecast,
            most,
            space,
            self.running,
            exchange.key.digest,
            exchange.notes,
        )

    def check_ready(self) -> None:
        """Raises:
        ApiError: 503; ``model_loading``, or, if the engine was there and is gone, ``engine_restarting`` or
            ``model_unavailable``.
        """
        if self.backend.ready():
            return
        if self.backend.services or self.backend.live or self.backend.pictures:
            raise self.engine_gone("The engine")
        raise ApiError(503, "The model is still being loaded.", code="model_loading", retry_after=2)

    def engine_gone(self, who: str) -> ApiError:
        """The answer when the engine has ended. ``who``: the beginning of the message, down to the engine."""
        if self.lost:
            return ApiError(503, f"{who} has ended and cannot be restarted.", code="model_unavailable", retry_after=30)
        return ApiError(503, f"{who} has ended; another is being started.", code="engine_restarting", retry_after=2)

    @property
    def lost(self) -> bool:
        """The engine was started, is gone, and none follows."""
        served = self.backend.services or self.backend.live or self.backend.pictures
        return bool(served) and not self.backend.alive()

    def any(self, model: str) -> TextService | LiveService | PictureService:
        """The service of this name or alias, of whatever kind.

        Raises:
            ApiError: 404 model_not_found.
        """
        return self.backend.live.get(model) or self.backend.pictures.get(model) or self.service(model)

    def service(self, model: str) -> TextService:
        """The service of this name or alias.

        Raises:
            ApiError: 404 model_not_found.
        """
        service = self.backend.services.get(model)
        if service is None:
            if model in self.backend.live:
                message = f"{model} answers live input: open a stream at /v1/streams/{model}"
                raise ApiError(400, message, param="model", code="live_model")
            if model in self.backend.pictures:
                message = f"{model} makes pictures: ask for them at /v1/images/generations"
                raise ApiError(400, message, param="model", code="picture_model")
            names = ", ".join(sorted(self.backend.services))
            message = f"There is no model {model[:100]!r} here. Models: {names}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return service

    def live(self, model: str) -> LiveService:
        """The service of live streams of this name or alias.

        Raises:
            ApiError: 404 model_not_found.
        """
        service = self.backend.live.get(model)
        if service is None:
            if model in self.backend.services:
                raise ApiError(400, f"{model} answers texts, not live input.", param="model", code="text_model")
            names = ", ".join(sorted(self.backend.live)) or "none"
            message = f"There is no model {model[:100]!r} of live input here. There are: {names}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return service

    def pictures(self, model: str | None) -> PictureService:
        """The service of pictures of this name or alias; without a name, the one there is.

        Raises:
            ApiError: no such model, or no name although there are none or several.
        """
        known = self.backend.pictures
        if model is None and len(names := {s.name for s in known.values()}) == 1:
            return known[names.pop()]
        if model is None:
            message = f"model is required; of pictures there is {', '.join(sorted(known)) or 'none'}."
            raise ApiError(400, message, param="model", code="missing_required_parameter")
        if model not in known:
            if model in self.backend.services or model in self.backend.live:
                raise ApiError(400, f"{model} makes no pictures.", param="model", code="wrong_model")
            there = ", ".join(sorted(known)) or "none"
            message = f"There is no model {model[:100]!r} of pictures here. There is {there}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return known[model]

    def only_service(self, model: str | None) -> TextService:
        """As ``service``; without a name, the one there is.

        Raises:
            ApiError: no such model, or no name although there are several.
        """
        if model is not None:
            return self.service(model)
        services = {s.name: s for s in self.backend.services.values()}
        if len(services) != 1:
            raise ApiError(
                400,
                f"model is required where several are served: {', '.join(sorted(services))}.",
                param="model",
                code="missing_required_parameter",
            )
        return next(iter(services.values()))
