"""A classifier of real pictures of clothes, by which made ones are judged: how many are told right, and how far apart
the features of made and real ones are (Frechet's distance; Heusel et al., arXiv 1706.08500)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from diastole.recipes import pictures
from diastole.types import Array

BATCH = 256


@dataclass(frozen=True, slots=True)
class Judge:
    """A trained classifier."""

    body: nn.Module
    head: nn.Module
    accuracy: float  # on pictures that it was not trained with

    @torch.no_grad()
    def features(self, x: Array) -> Array:
        """x (N, H, W) -> (N, F)."""
        rows = torch.from_numpy(np.ascontiguousarray(x, np.float32))[:, None]
        return np.concatenate([self.body(part).numpy() for part in rows.split(BATCH)])

    @torch.no_grad()
    def classes(self, x: Array) -> Array:
        """x (N, H, W) -> (N,)."""
        found: Array = self.head(torch.from_numpy(self.features(x))).argmax(1).numpy()
        return found


def trained(seed: int, epochs: int = 3) -> Judge:
    """On Fashion-MNIST's training pictures: a minute or two."""
    torch.manual_seed(seed)
    n = pictures.SIDE // 4
    body = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(48 * n * n, 64), nn.ReLU(),
    )  # fmt: skip
    head = nn.Linear(64, len(pictures.LABELS))
    train, test = pictures.fashion()
    x, y = torch.from_numpy(train.x)[:, None], torch.from_numpy(train.y)
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, 2e-3)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(x))[: len(x) // BATCH * BATCH]
        for rows in order.split(BATCH):
            loss = F.cross_entropy(head(body(x[rows])), y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    judge = Judge(body.eval(), head.eval(), 0.0)
    return Judge(body, head, float(np.mean(judge.classes(test.x) == test.y)))


def distance(a: Array, b: Array) -> float:
    """Frechet's, between normal distributions with the means and covariances of a (N, F) and b (M, F)."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    one, other = np.cov(a.T), np.cov(b.T)
    root = _root(one)
    both = np.linalg.eigvalsh(root @ other @ root)
    mean = float(np.square(a.mean(0) - b.mean(0)).sum())
    return mean + float(np.trace(one) + np.trace(other) - 2 * np.sqrt(np.maximum(both, 0)).sum())


def _root(matrix: Array) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    found: Array = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return found
