"""Face: what every endpoint stands on: backend, settings, gate, counters and traces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diastole.serve.errors import ApiError
from diastole.serve.gate import Gate
from diastole.serve.interface import Backend, TextService
from diastole.serve.metrics import Traffic
from diastole.serve.tracing import Traces

if TYPE_CHECKING:
    from diastole.config import ServerConfig


@dataclass(frozen=True, slots=True)
class Face:
    """Made once per server."""

    backend: Backend
    config: ServerConfig
    gate: Gate
    traffic: Traffic
    traces: Traces

    def check_ready(self) -> None:
        """Raises:
        ApiError: 503; ``model_loading``, or ``model_unavailable`` if the engine was there and is gone.
        """
        if self.backend.ready():
            return
        if self.lost:
            message = "The engine has ended. It must be restarted."
            raise ApiError(503, message, code="model_unavailable", retry_after=30)
        raise ApiError(503, "The model is still being loaded.", code="model_loading", retry_after=2)

    @property
    def lost(self) -> bool:
        """The engine was started and is no longer alive."""
        return bool(self.backend.services) and not self.backend.alive()

    def service(self, model: str) -> TextService:
        """The service of this name or alias.

        Raises:
            ApiError: 404 model_not_found.
        """
        service = self.backend.services.get(model)
        if service is None:
            names = ", ".join(sorted(self.backend.services))
            message = f"There is no model {model[:100]!r} here. Models: {names}."
            raise ApiError(404, message, param="model", code="model_not_found")
        return service

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
