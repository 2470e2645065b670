"""Two greedy ways of reading text out of an encoder's frames: CTC, and a transducer whose predictor is one LSTM layer.

Both keep what they need of a stream in its cell, and give symbols frame by frame. Where nothing has been said for long
enough they tell ``END`` once, and begin anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from diastole.nn.conv import Dense
from diastole.nn.rowwise import sigmoid
from diastole.types import Array, CellSpec

if TYPE_CHECKING:
    from diastole.kernels.table import Ops

NONE, END = -1, -2  # among symbols: there are no more, and an utterance ends
MOST = 10  # symbols of a frame


class Transducer:
    """Reads frames (B, n, d). Symbols are 0..V-1; V is none.

    ``weights``: ctc (V + 1, d); embed (V + 1, e); lstm_in (4 h, e) and lstm_hidden (4 h, h), gates in torch's order;
    join_frame (j, d), join_text (j, h), join_out (V + 1, j); of all but embed with a bias where they have one.
    """

    most = MOST + 1

    def __init__(self, ops: Ops, weights: Mapping[str, Array]) -> None:
        def dense(name: str) -> Dense:
            return Dense(ops, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

        self._ctc, self._frame, self._text, self._out = map(dense, ("ctc", "join_frame", "join_text", "join_out"))
        self._embed = weights["embed.weight"]
        self._in, self._hidden = dense("lstm_in"), dense("lstm_hidden")
        self.none = len(self._embed) - 1
        self.width = weights["lstm_hidden.weight"].shape[1]

    def specs(self) -> dict[str, CellSpec]:
        """What it keeps of a stream. ``last`` is one more than the symbol, so that 0 is the beginning."""
        hidden = CellSpec((self.width,))
        number = CellSpec((), "int64")
        return {"lstm_h": hidden, "lstm_c": hidden, "last": number, "quiet": number, "spoke": number}

    def ctc(self, frames: Array, state: Mapping[str, Array], cells: Array, ends: Array) -> Array:
        """The likeliest symbol of each frame, where it is another than the frame's before.

        Args:
            frames: (B, n, d).
            cells: (B,) of the streams.
            ends: (B,) frames of nothing that end an utterance.

        Returns:
            (B, n, most) int32.
        """
        best = self._ctc(frames).argmax(-1)
        out = np.full((*best.shape, self.most), NONE, np.int32)
        for f in range(best.shape[1]):
            symbol = best[:, f]
            fresh = (symbol != self.none) & (symbol + 1 != state["last"][cells])
            out[fresh, f, 0] = symbol[fresh]
            state["last"][cells] = symbol + 1
            self._listen(fresh, state, cells, ends, out[:, f])
        return out

    def greedy(self, frames: Array, state: Mapping[str, Array], cells: Array, ends: Array) -> Array:
        """The likeliest symbols of each frame after those before, as many as come until none is."""
        heard = self._frame(frames)
        b, n, _ = heard.shape
        out = np.full((b, n, self.most), NONE, np.int32)
        said = self._text(self._told(state, cells))
        for f in range(n):
            count = np.zeros(b, np.int64)
            active = np.arange(b)
            for _ in range(MOST):
                symbol = self._out(np.tanh(heard[active, f] + said[active])).argmax(-1)
                more = symbol != self.none
                active, symbol = active[more], symbol[more]
                if not len(active):
                    break
                out[active, f, count[active]] = symbol
                count[active] += 1
                state["last"][cells[active]] = symbol + 1
                self._step(symbol, state, cells[active])
                said[active] = self._text(self._told(state, cells[active]))
            over = self._listen(count > 0, state, cells, ends, out[:, f])
            if over.any():
                for name in ("lstm_h", "lstm_c", "last"):
                    state[name][cells[over]] = 0
                said[over] = self._text(self._told(state, cells[over]))
        return out

    def _told(self, state: Mapping[str, Array], cells: Array) -> Array:
        return state["lstm_h"][cells]

    def _step(self, symbol: Array, state: Mapping[str, Array], cells: Array) -> None:
        """One more symbol (B,) of these streams."""
        gates = self._in(self._embed[symbol]) + self._hidden(state["lstm_h"][cells])
        i, f, g, o = np.split(gates, 4, axis=1)
        c = sigmoid(f) * state["lstm_c"][cells] + sigmoid(i) * np.tanh(g)
        state["lstm_c"][cells] = c
        state["lstm_h"][cells] = sigmoid(o) * np.tanh(c)

    @staticmethod
    def _listen(spoke: Array, state: Mapping[str, Array], cells: Array, ends: Array, out: Array) -> Array:
        """Count frames of nothing; (B,) whose utterance ends here, which ``out`` (B, most) then tells."""
        quiet = np.where(spoke, 0, state["quiet"][cells] + 1)
        ever = state["spoke"][cells] | spoke
        over: Array = (ever != 0) & (quiet >= ends)
        state["quiet"][cells], state["spoke"][cells] = np.where(over, 0, quiet), ever & ~over
        out[over, -1] = END
        return over
