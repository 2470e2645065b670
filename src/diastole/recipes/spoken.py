"""Spoken numbers, letters and commands whose texts are known, strung together at random.

Real voices: the prompts of a telephone system (Asterisk's, CC-BY-SA-3.0, one speaker) and letters of a children's
program (KLettres, GPL-2+, one speaker each for en and en_GB). Made voices: eSpeak NG and Flite, which must be
installed. Some are kept for tests, the real en_GB among them. No recording is shipped with what is trained on it.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache as remembered
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diastole.assets import cache, pull
from diastole.kernels.table import load
from diastole.nn.mel import LogMel
from diastole.types import Array, UserError

RATE = 16_000
FRAME = 1280  # samples of an encoder's frame
SECONDS = 6.4  # of an example

ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
TENS = dict(zip(range(20, 100, 10), "twenty thirty forty fifty sixty seventy eighty ninety".split(), strict=True))
LARGE = "oh hundred thousand million billion minus star pound dollars today yesterday tomorrow at".split()
DAYS = "sunday monday tuesday wednesday thursday friday saturday".split()
MONTHS = "january february march april may june july august september october november december".split()
SIGNS = "zed at dash dot equals plus slash space dollar asterisk".split()
PHONETIC = (
    "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo "
    "sierra tango uniform victor whiskey xray yankee zulu"
).split()
COMMANDS = "yes no stop go left right up down on off start pause play next back forward meters open close".split()
CARDS = "ace king queen jack of hearts spades clubs diamonds".split()
LETTERS = [chr(97 + i) for i in range(26)]
WORDS = sorted({*ONES, *TENS.values(), *LARGE, *DAYS, *MONTHS, *SIGNS, *PHONETIC, *COMMANDS, *CARDS, *LETTERS})
# Voice, and whether it is kept for tests.
ESPEAK = {
    f"{accent}+{variant}": False for accent in ("en-us", "en-gb") for variant in ("m1", "m3", "m7", "f1", "f2", "f4")
}
ESPEAK |= {"en-gb-x-rp+m2": False, "en-gb-scotland+f3": False, "en-us+m4": True, "en-gb+f5": True}
FLITE = {"kal16": False, "awb": False, "slt": False, "rms": True}
SPOKEN = {letter: letter for letter in LETTERS} | {"a": "ay", "xray": "x ray"}  # how a synthesiser is told to say it
Voice = Mapping[str, Array]  # what it says by text: int16
PIECES = 128  # of words, as symbols


def pieces(words: Sequence[str], count: int) -> tuple[str, ...]:
    """Symbols that words are written with: letters, with a space before them where a word begins, and the commonest
    pairs of such, again and again (byte pair encoding). A frame of 80 ms is too long for single letters: CTC gives one
    symbol for each at most."""
    spelled = [[" " + w[0], *w[1:]] for w in words]
    found = [*(" " + x for x in LETTERS), *LETTERS]
    while len(found) < count:
        pairs = Counter(pair for s in spelled for pair in pairwise(s))
        (a, b), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        found.append(a + b)
        spelled = [_joined(s, a, b) for s in spelled]
    return tuple(found)


def _joined(spelled: Sequence[str], a: str, b: str) -> list[str]:
    out: list[str] = []
    for symbol in spelled:
        if out and out[-1] == a and symbol == b:
            out[-1] = a + b
        else:
            out.append(symbol)
    return out


SYMBOLS = pieces(WORDS, PIECES)


def encoded(text: str) -> list[int]:
    """Symbols of a text."""
    return [symbol for word in text.split() for symbol in _word(word)]


@remembered
def _word(word: str) -> list[int]:
    """The pairs are joined in the order in which they were found."""
    spelled = [" " + word[0], *word[1:]]
    for joined in SYMBOLS[2 * len(LETTERS) :]:
        for cut in range(1, len(joined)):
            spelled = _joined(spelled, joined[:cut], joined[cut:])
    return [SYMBOLS.index(s) for s in spelled]


class Batch(NamedTuple):
    """Examples of equal length."""

    mel: Array  # (B, 8 T, bands) float32
    frames: Array  # (B,) int64: T, of each
    symbols: Array  # (B, U) int64
    sizes: Array  # (B,) int64
    aligned: Array  # (B, T) int64: of each frame the symbol that is said there, about, or that there is none
    texts: Sequence[str]


class Example(NamedTuple):
    """A made-up recording."""

    x: Array  # (N,) float32
    text: str
    spans: Sequence[tuple[float, float]]  # seconds from which and to which each word is said


@dataclass(slots=True)
class Corpus:
    """Voices, and how they are strung together."""

    voices: Sequence[Voice]
    about: str
    bands: int = 80
    _mel: LogMel = field(init=False)

    def __post_init__(self) -> None:
        self._mel = LogMel(load(1), RATE, self.bands)

    def example(self, rng: np.random.Generator, seconds: float = SECONDS, noisy: bool = True) -> Example:
        """Words of one voice, with pauses, at some speed, in a room, with noise."""
        length = round(seconds * RATE)
        voice = self.voices[int(rng.integers(len(self.voices)))]
        names = list(voice)
        x = np.zeros(length, np.float32)
        at = int(rng.integers(RATE // 10, RATE // 2))
        texts: list[str] = []
        spans: list[tuple[float, float]] = []
        speed = rng.uniform(0.88, 1.14)
        spell = rng.random() < 0.3  # letters come together
        while len(texts) < 12 * seconds / SECONDS:
            text = names[rng.integers(len(names))]
            if spell and len(text) > 1:
                text = LETTERS[rng.integers(26)]
                if text not in voice:
                    continue
            clip = _stretched(voice[text].astype(np.float32) / 32768, speed)
            if at + len(clip) > length - RATE // 4:
                break
            x[at : at + len(clip)] += clip
            texts.append(text)
            spans.append((at / RATE, (at + len(clip)) / RATE))
            at += len(clip) + int(rng.integers(0, RATE * 2 // 5))
        return Example(_heard(x, rng) if noisy else _level(x, -20), " ".join(texts), spans)

    def batch(self, rng: np.random.Generator, size: int, seconds: float = SECONDS) -> Batch:
        """Examples as a training wants them."""
        examples = [self.example(rng, seconds) for _ in range(size)]
        mel = np.stack([self.mel(e.x) for e in examples])
        ids = [np.array(encoded(e.text), np.int64) for e in examples]
        symbols = np.zeros((size, max(map(len, ids))), np.int64)
        for row, own in zip(symbols, ids, strict=True):
            row[: len(own)] = own
        frames = np.full(size, mel.shape[1] // 8, np.int64)
        aligned = np.stack([_aligned(e, mel.shape[1] // 8) for e in examples])
        return Batch(mel, frames, symbols, np.array([len(i) for i in ids]), aligned, [e.text for e in examples])

    def mel(self, x: Array) -> Array:
        """x (N,) -> (8 T, bands), filled up with silence to whole frames."""
        padded = np.zeros((1, self._mel.tail + -(-len(x) // FRAME) * FRAME), np.float32)
        padded[0, self._mel.tail : self._mel.tail + len(x)] = x
        found: Array = self._mel(padded)[0]
        return found

    def statistics(self, seed: int) -> tuple[Array, Array]:
        """Mean, and one over the deviation, of each band over some examples."""
        rng = np.random.default_rng((seed, 1))
        mel = np.concatenate([self.mel(self.example(rng).x) for _ in range(64)])
        return mel.mean(0), 1 / np.maximum(mel.std(0), 1e-3)


def _aligned(example: Example, frames: int) -> Array:
    """(T,): a word's symbols are thought to last equally long."""
    out = np.full(frames, len(SYMBOLS), np.int64)
    for word, (start, end) in zip(example.text.split(), example.spans, strict=True):
        ids = _word(word)
        lo, hi = int(start * RATE / FRAME), min(max(int(end * RATE / FRAME), int(start * RATE / FRAME) + 1), frames)
        for frame in range(lo, hi):
            out[frame] = ids[(frame - lo) * len(ids) // (hi - lo)]
    return out


def _stretched(x: Array, speed: float) -> Array:
    """Faster and higher, or slower and lower."""
    at = np.arange(0, len(x) - 1, speed)
    found: Array = np.interp(at, np.arange(len(x)), x).astype(np.float32)
    return found


def _heard(x: Array, rng: np.random.Generator) -> Array:
    """In a room with some echo, with noise, at some level."""
    if rng.random() < 0.4:
        decay = rng.uniform(0.02, 0.12)
        n = int(4 * decay * RATE)
        room = (
            rng.normal(size=n) * np.exp(-np.arange(n) / (decay * RATE)) * rng.uniform(0.05, 0.3) / np.sqrt(decay * RATE)
        )
        room[0] += 1
        size = 1 << (len(x) + n).bit_length()
        x = np.fft.irfft(np.fft.rfft(x, size) * np.fft.rfft(room, size), size)[: len(x)]
    noise = rng.normal(size=len(x))
    tilt = rng.uniform(0, 1.2)  # white to brown
    spectrum = np.fft.rfft(noise) / np.maximum(np.fft.rfftfreq(len(x), 1 / RATE), 50) ** tilt
    noise = np.fft.irfft(spectrum, len(x))
    snr = rng.uniform(8, 45)
    loud = np.sqrt(np.mean(np.square(x[np.abs(x) > 0.01]))) if (np.abs(x) > 0.01).any() else 0.05
    x = x + noise / noise.std() * loud * 10 ** (-snr / 20)
    return _level(x, rng.uniform(-32, -14))


def _level(x: Array, db: float) -> Array:
    found: Array = (x * (10 ** (db / 20) / max(float(np.sqrt(np.mean(np.square(x)))), 1e-6))).astype(np.float32)
    return np.clip(found, -1, 1)


# ---- voices


def corpora(tell: Callable[[str], None] = lambda what: None) -> tuple[Corpus, Corpus]:
    """To train with, and to test with: other voices.

    Raises:
        UserError: a package or a program is missing.
    """
    train: list[Voice] = []
    test: list[Voice] = []
    for name, kept in ESPEAK.items():
        tell(name)
        (test if kept else train).append(_cached(f"espeak-{name}", lambda name=name: espeak(name)))  # type: ignore[misc]
    for name, kept in FLITE.items():
        tell(name)
        (test if kept else train).append(_cached(f"flite-{name}", lambda name=name: flite(name)))  # type: ignore[misc]
    tell("asterisk")
    real = [asterisk(), klettres("en")]
    train += real * 3  # there are few of them
    test += [klettres("en_GB")] * 2
    about = "Asterisk prompts (CC-BY-SA-3.0), KLettres letters (GPL-2+), eSpeak NG and Flite voices; noise simulated"
    return Corpus(train, about), Corpus(test, about)


def _cached(name: str, make: Callable[[], Voice]) -> Voice:
    """A made voice takes seconds; it is kept."""
    place = cache.root() / "voices" / f"{name.replace('+', '-')}.npz"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_suffix(".part.npz")
        np.savez(part, **make())  # type: ignore[arg-type]
        part.replace(place)
    with np.load(place) as found:
        return {name: found[name] for name in found.files}


def espeak(voice: str) -> Voice:
    """Everything said by a voice of eSpeak NG."""
    return {word: _said(["espeak-ng", "-v", voice, "--stdout", SPOKEN.get(word, word)]) for word in WORDS}


def flite(voice: str) -> Voice:
    """Everything said by a voice of Flite."""
    return {
        word: _said(["flite", "-voice", voice, "-t", SPOKEN.get(word, word), "-o", "/dev/stdout"]) for word in WORDS
    }


def _said(command: Sequence[str]) -> Array:
    import soundfile

    if shutil.which(command[0]) is None:
        raise UserError(f"this needs {command[0]}: apt-get install {command[0]}", param="data")
    done = subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    x, rate = soundfile.read(io.BytesIO(done.stdout), dtype="float32")
    return trimmed(at_16k(x, rate))


def at_16k(x: Array, rate: float) -> Array:
    """Resampled."""
    if rate == RATE:
        return x
    import soxr

    found: Array = soxr.resample(x, rate, RATE).astype(np.float32)
    return found


def trimmed(x: Array) -> Array:
    """Without the silence before and behind, as loud as the others, int16."""
    size = RATE // 100
    power = np.sqrt(np.mean(np.square(x[: len(x) // size * size].reshape(-1, size)), 1))
    loud = np.flatnonzero(power > 0.03 * power.max())
    x = x[max(loud[0] - 3, 0) * size : (loud[-1] + 4) * size]
    return (x * (0.7 * 32767 / max(float(np.abs(x).max()), 1e-6))).astype(np.int16)


def klettres(language: str) -> Voice:
    """Letters as children learn them."""
    import soundfile

    found = {}
    for name, data in _files("klettres", f"/{language}/alpha/").items():
        letter = Path(name).stem.lower()
        if letter not in LETTERS:
            continue
        x, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        found["zed" if letter == "z" and language == "en_GB" else letter] = trimmed(at_16k(x.mean(1), rate))
    return found


def asterisk() -> Voice:
    """Prompts of a telephone system."""
    known: dict[str, str] = {f"digits/{i}": ONES[i] for i in range(20)}
    known |= {f"digits/{n}": word for n, word in TENS.items()} | {f"digits/{w}": w for w in LARGE}
    known |= {f"digits/day-{i}": day for i, day in enumerate(DAYS)}
    known |= {f"digits/mon-{i}": month for i, month in enumerate(MONTHS)}
    known |= {f"letters/{x}": x for x in (*LETTERS, *SIGNS)}
    known |= {f"phonetic/{word[0]}_p": word for word in PHONETIC}
    found = {}
    for name, data in _files("asterisk-sounds-en", "/").items():
        text = known.get("/".join(Path(name).with_suffix("").parts[-2:]))
        if text is not None:
            found[text] = trimmed(g722(data))
    return found


def g722(data: bytes) -> Array:
    """Samples at 16 kHz of a recording in G.722."""
    try:
        import av
    except ImportError:
        raise UserError("this needs PyAV, to read G.722: pip install av", param="data") from None
    with av.open(io.BytesIO(data), "r", format="g722") as container:
        parts = [frame.to_ndarray() for frame in container.decode(audio=0)]
    found: Array = np.concatenate(parts, 1).ravel().astype(np.float32) / 32768
    return found


def _files(asset: str, within: str) -> dict[str, bytes]:
    """Files of an asset that is an archive."""
    found = {}
    with tarfile.open(pull(asset)) as archive:
        for member in archive:
            if member.isfile() and within in f"/{member.name}":
                stream = archive.extractfile(member)
                assert stream is not None
                found[member.name] = stream.read()
    return found


def rate(said: Sequence[str], meant: Sequence[str]) -> float:
    """Word error rate: words to change, add or leave out, of those that were meant."""
    wrong = sum(distance(s.split(), m.split()) for s, m in zip(said, meant, strict=True))
    return wrong / max(sum(len(m.split()) for m in meant), 1)


def distance(a: Sequence[Any], b: Sequence[Any]) -> int:
    """Levenshtein's."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def held_out() -> list[tuple[str, Array, str]]:
    """Recordings of people that nobody trains with: name, samples, and what they say."""
    import soundfile

    files = {Path(name).name: data for name, data in _files("pocketsphinx-testdata", "/").items()}
    lines = files["cards.transcription"].decode().splitlines()
    found = []
    for line in lines:
        text, _, name = line.partition("</s>")
        name = name.strip().strip("()") + ".wav"
        if name in files:
            x, rate = soundfile.read(io.BytesIO(files[name]), dtype="float32")
            found.append((name, at_16k(x, rate), text.replace("<s>", "").strip()))
    raw = {"goforward.raw": "go forward ten meters", "dhd.2934z.raw": "two nine three four zero"}
    for name, text in raw.items():
        x = np.frombuffer(files[name], "<i2").astype(np.float32) / 32768
        found.append((name, x, text))
    return found
