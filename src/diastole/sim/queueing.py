"""Mean time to the first token by M/D/1 queues (DistServe, section 3.1): why few requests want tensor parallelism and
many a pipeline. Poisson arrivals at ``rate`` per second; ``service`` is the unloaded prefill time in seconds, D below.

    one GPU            D + R·D² / (2(1 - R·D))
    two in a pipeline  D + R·D² / (4(2 - R·D))              a stage takes D/2
    two with tensors   D/K + R·D² / (2K(K - R·D))           K: how many times as fast two are, 1 < K <= 2

A queue that is not stable waits for ever: infinity.
"""

from __future__ import annotations

import math


def waiting(rate: float, service: float) -> float:
    """Mean seconds in the queue of an M/D/1 server (Pollaczek and Khinchine).

    Raises:
        ValueError: the rate is negative or the service time is not above 0.
    """
    if not (rate >= 0 and service > 0):
        raise ValueError(f"a rate of {rate} and a service time of {service} describe no queue")
    load = rate * service
    return math.inf if load >= 1 else load * service / (2 * (1 - load))


def one(rate: float, service: float) -> float:
    """Mean time to the first token on one GPU."""
    return service + waiting(rate, service)


def pipeline(rate: float, service: float, stages: int = 2) -> float:
    """The same where ``stages`` GPUs have a part of the layers each; only the first stage is waited for."""
    return service + waiting(rate, service / stages)


def tensor(rate: float, service: float, speedup: float) -> float:
    """The same where the GPUs share every layer and are ``speedup`` times as fast together."""
    return one(rate, service / speedup)


def crossover(service: float, speedup: float) -> float:
    """The rate at which two GPUs in a pipeline begin to answer sooner than two with tensors; requests per second.

    Raises:
        ValueError: the speed-up is not between 1 and 2; at 1 a pipeline is never worse, at 2 never better.
    """
    if not 1 < speedup < 2:
        raise ValueError(f"two GPUs are between 1 and 2 times as fast as one, not {speedup}")
    low, high = 0.0, speedup / service  # there tensors are sooner at rest and wait for ever at their capacity
    for _ in range(200):
        middle = (low + high) / 2
        if tensor(middle, service, speedup) < pipeline(middle, service):
            low = middle
        else:
            high = middle
    return (low + high) / 2
