"""Sources of live input: files as the field writes them, and packets of a network."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from diastole.signals.seedlink import Joined
from diastole.signals.source import component, numbers, source
from diastole.types import UserError
from live import small

obspy = pytest.importorskip("obspy")


def test_a_sound_file_is_one_channel(tmp_path: Path) -> None:
    x = 0.5 * np.sin(np.arange(8000) / 5)
    soundfile.write(tmp_path / "a.flac", np.stack([x, np.zeros(8000)], 1), 8000)
    found = source(str(tmp_path / "a.flac"))
    assert (found.about.rate, found.about.channels, found.about.live) == (8000.0, ("mono",), False)
    pieces = [piece.x for piece in found]
    assert len(pieces) == 10
    np.testing.assert_allclose(np.concatenate(pieces)[:, 0], x / 2, atol=1e-4)


def test_ground_motion_has_its_components_and_its_time(tmp_path: Path) -> None:
    x = np.round(1000 * small.noise(500, 3)).astype(np.int32)
    start = obspy.UTCDateTime(2020, 1, 2, 3, 4, 5)
    header = {"network": "XX", "station": "ABC", "sampling_rate": 50.0, "starttime": start}
    traces = [obspy.Trace(x[:, i].copy(), {**header, "channel": f"HH{c}"}) for i, c in enumerate("ENZ")]
    obspy.Stream(traces).write(str(tmp_path / "a.mseed"), "MSEED")
    found = source(str(tmp_path / "a.mseed"))
    assert found.about.rate == 50.0
    assert sorted(found.about.channels) == ["E", "N", "Z"]
    assert found.about.start == start.timestamp
    whole = np.concatenate([piece.x for piece in found])
    order = [found.about.channels.index(c) for c in "ENZ"]
    np.testing.assert_array_equal(whole[:, order], x)
    other = obspy.Trace(x[:, 0].copy(), {**header, "station": "DEF", "channel": "HHZ"})
    obspy.Stream([*traces, other]).write(str(tmp_path / "two.mseed"), "MSEED")
    with pytest.raises(UserError, match=r"2 stations \(XX.ABC, XX.DEF\)"):
        source(str(tmp_path / "two.mseed"))
    assert [component(c) for c in ("HHZ", "BH1", "EH2")] == ["Z", "N", "E"]


@pytest.mark.parametrize("order", ["ENZ", "ZNE"])
def test_what_a_station_did_not_record_is_in_no_piece(tmp_path: Path, order: str) -> None:
    x = np.arange(1200).reshape(400, 3).astype(np.int32)
    start = obspy.UTCDateTime(2020, 1, 2)
    header = {"network": "XX", "station": "ABC", "sampling_rate": 50.0}
    parts = []
    gaps = {"E": (100, 150), "N": (120, 180), "Z": (300, 310)}
    for i, c in enumerate(order):
        gap = gaps[c]
        for lo, hi in ((0, gap[0]), (gap[1], 400)):
            at = {"channel": f"HH{c}", "starttime": start + lo / 50}
            parts.append(obspy.Trace(x[lo:hi, i].copy(), {**header, **at}))
    obspy.Stream(parts).write(str(tmp_path / "a.mseed"), "MSEED")
    found = source(str(tmp_path / "a.mseed"))
    assert found.about.channels == tuple(order)
    pieces = list(found)
    here = [i for piece in pieces for i in range(piece.first or 0, (piece.first or 0) + len(piece.x))]
    assert here == [*range(100), *range(180, 300), *range(310, 400)]
    np.testing.assert_array_equal(np.concatenate([piece.x for piece in pieces]), x[here])


def test_stretches_that_lie_years_apart_take_no_memory(tmp_path: Path) -> None:
    header = {"network": "XX", "station": "ABC", "channel": "HHZ", "sampling_rate": 100.0}
    parts = [obspy.Trace(np.zeros(50), {**header, "starttime": obspy.UTCDateTime(y, 1, 1)}) for y in (2000, 2020)]
    obspy.Stream(parts).write(str(tmp_path / "a.mseed"), "MSEED")
    with pytest.raises(UserError, match="its stretches lie more than 100,000,000 samples apart"):
        source(str(tmp_path / "a.mseed"))


def test_eeg_is_in_microvolts(tmp_path: Path) -> None:
    edfio = pytest.importorskip("edfio")
    pytest.importorskip("mne")
    x = 50 * np.sin(np.arange(2560) / 9)
    signals = [edfio.EdfSignal(x * k, 256.0, label=f"EEG {k}", physical_dimension="uV") for k in (1, 2)]
    edfio.Edf(signals).write(tmp_path / "a.edf")
    found = source(str(tmp_path / "a.edf"))
    assert (found.about.rate, len(found.about.channels)) == (256.0, 2)
    whole = np.concatenate([piece.x for piece in found])
    np.testing.assert_allclose(whole[:2560, 0], x, atol=0.1)


def test_tables_of_numbers(tmp_path: Path) -> None:
    x = small.noise(30, 3)
    np.save(tmp_path / "a.npy", x)
    np.savetxt(tmp_path / "a.csv", x, delimiter=",")
    for name in ("a.npy", "a.csv"):
        found = numbers(tmp_path / name, 100.0)
        assert found.about.channels == ("ch1", "ch2", "ch3")
        np.testing.assert_allclose(found.x, x, atol=1e-6)
    assert numbers(tmp_path / "a.npy", 100.0, ("a", "b", "c")).about.channels == ("a", "b", "c")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name, names, said in (
        ("objects.npy", (), "cannot be read as numbers"),
        ("a.npy", ("a",), "3 channels, and 1 are named"),
    ):
        with pytest.raises(UserError, match=said):
            numbers(tmp_path / name, 100.0, names)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nothing.wav", "is no file"),
        ("a.wav", "cannot be read as sound"),
        ("a.mseed", "cannot be read as ground motion"),
        ("a.edf", "cannot be read as EEG"),
        ("a.npy", "use --rate"),
        ("seedlink:", "is no file"),
        ("seedlink:host", "write seedlink:HOST/NET.STA"),
        ("seedlink:127.0.0.1:9/XX.ABC", "cannot be reached"),
    ],
)
def test_what_cannot_be_read_is_told(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "a.edf":
        pytest.importorskip("mne")
    monkeypatch.chdir(tmp_path)
    for kind in ("a.wav", "a.mseed", "a.edf", "a.npy"):
        (tmp_path / kind).write_bytes(b"nothing of the kind" * 40)
    with pytest.raises(UserError, match=said):
        source(name)


def test_packets_of_channels_are_put_side_by_side() -> None:
    x = small.noise(300, 3)
    joined = Joined(("E", "N", "Z"), 100.0, 1000.0)
    cuts = {0: [0, 100, 200, 300], 1: [0, 50, 120, 300], 2: [0, 150, 300]}
    packets = [(c, lo, hi) for c, edges in cuts.items() for lo, hi in pairwise(edges)]
    pieces = []
    for i in np.random.default_rng(0).permutation(len(packets)):
        c, lo, hi = packets[i]
        joined.add("ENZ"[c], 1000.0 + lo / 100, x[lo:hi, c])
    pieces = joined.take()
    assert pieces[0].first == 0
    np.testing.assert_array_equal(np.concatenate([p.x for p in pieces]), x)


def test_what_never_came_is_left_out_and_told_by_number() -> None:
    x = small.noise(300, 3)
    joined = Joined(("E", "N", "Z"), 100.0, 0.0)
    for c in range(3):
        joined.add("ENZ"[c], 0.0, x[:100, c])
        joined.add("ENZ"[c], 2.0, x[200:, c])
    pieces = joined.take()
    assert [(p.first, len(p.x)) for p in pieces] == [(0, 100), (200, 100)]
    np.testing.assert_array_equal(pieces[1].x, x[200:])
