"""The transducer's loss: minus the log of all alignments' probability together (Graves, arXiv 1211.3711).

Over the lattice of frames and symbols the diagonals are done one after the other, each for all streams and places at
once.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEAST = -1e30  # for log 0: differences of infinities have no gradient


def transducer_loss(chances: Tensor, symbols: Tensor, frames: Tensor, sizes: Tensor, none: int) -> Tensor:
    """(B,).

    Args:
        chances: (B, T, U + 1, V) log probabilities of the next symbol at a frame after so many symbols.
        symbols: (B, U).
        frames, sizes: (B,) how much of T and U is a stream's.
        none: the symbol that moves on to the next frame.
    """
    b, t, u1, _ = chances.shape
    stay = chances[:, :, :-1].gather(3, symbols[:, None, :, None].expand(b, t, u1 - 1, 1))[..., 0]  # (B, T, U)
    move = chances[..., none]  # (B, T, U + 1)
    # Column u of diagonal n is frame n - u.
    diagonals = t + u1 - 1
    at = torch.arange(diagonals)[:, None] - torch.arange(u1)  # frame of each
    inside = (at >= 0) & (at < t)
    place = at.clamp(0, t - 1)
    columns = torch.arange(u1)
    moves = move[:, place, columns].masked_fill(~inside, _LEAST)  # (B, N, U + 1)
    stays = torch.nn.functional.pad(stay, (0, 1), value=_LEAST)[:, place, columns].masked_fill(~inside, _LEAST)
    alpha = torch.full((b, u1), _LEAST)
    alpha[:, 0] = 0
    found = [alpha]
    for n in range(1, diagonals):
        by_move = alpha + moves[:, n - 1]
        by_stay = torch.nn.functional.pad((alpha + stays[:, n - 1])[:, :-1], (1, 0), value=_LEAST)
        alpha = torch.logaddexp(by_move, by_stay).clamp_min(_LEAST)
        found.append(alpha)
    every = torch.stack(found, 1)  # (B, N, U + 1)
    last = frames - 1 + sizes
    end = every[torch.arange(b), last, sizes] + move[torch.arange(b), frames - 1, sizes]
    return -end
