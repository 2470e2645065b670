"""Readers of recorded loads: each format by its content, and nothing hostile gets further than a clear message."""

from __future__ import annotations

from pathlib import Path

import pytest

from diastole.bench.load import traces
from diastole.bench.load.traces import Recorded, read
from diastole.types import UserError

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "anything.txt"


def test_azure(file: Path) -> None:
    file.write_text(
        AZURE + "2023-11-16 18:15:46.6805900,374,44\n\n2023-11-16 18:15:46.9305900,396,109\n"
        "2023-11-16 18:16:46.6805900+00:00,1,0\n"
    )
    trace = read(file)
    assert (trace.format, trace.skipped, trace.block) == ("azure", 1, 0)
    assert [(r.prompt, r.output) for r in trace.rows] == [(374, 44), (396, 109)]
    assert [r.at for r in trace.rows] == pytest.approx([0, 0.25], abs=1e-6)


def test_burstgpt_skips_and_counts_failures(file: Path) -> None:
    file.write_bytes(
        b"\xef\xbb\xbf"
        + (BURST + '45,ChatGPT,472,18,490,"API, log"\r\n118,GPT-4,1087,0,1087,API log\r\n').encode()
        + b"111.5,ChatGPT,417,276,693,Conversation log"
    )
    trace = read(file)
    assert (trace.format, trace.skipped) == ("burstgpt", 1)
    assert trace.rows == (Recorded(0.0, 472, 18), Recorded(66.5, 417, 276))


def test_mooncake_in_order_of_time(file: Path) -> None:
    file.write_text(
        '{"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [46, 47]}\n'
        '{"timestamp": 1500.5, "input_length": 512, "output_length": 7, "hash_ids": [46], "more": {}}\n'
        '{"timestamp": 3000, "input_length": 5, "output_length": 1}\n'
    )
    trace = read(file)
    assert (trace.format, trace.block) == ("mooncake", 512)
    assert trace.rows == (Recorded(0.0, 512, 7, (46,)), Recorded(1.4995, 600, 5, (46, 47)), Recorded(1.4995, 5, 1))


ROW = '{"timestamp": %s, "input_length": %s, "output_length": %s, "hash_ids": %s}\n'


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "line 1: no known trace begins so"),
        ("a,b\n1,2\n", "line 1: no known trace begins so"),
        ("[1, 2]\n", "no known trace"),
        (AZURE, "no request that was answered"),
        ("TIMESTAMP,ContextTokens\n", "line 1: azure needs a column 'GeneratedTokens'"),
        ("Timestamp,Model,Request tokens\n", "burstgpt needs a column 'Response tokens'"),
        (
            AZURE + "2023-11-16 18:15:46,374,44\n2023-11-16 18:1",
            r"line 3: it has 1 fields .* \(missing: ContextTokens\)",
        ),
        (AZURE + "2023-11-16 18:15:46,374,44,9\n", "line 2: it has 4 fields"),
        (AZURE + "yesterday,374,44\n", "line 2: TIMESTAMP must be a time"),
        (AZURE + "2023-11-16 18:15:46,-3,44\n", "line 2: ContextTokens must be a whole number"),
        (AZURE + "2023-11-16 18:15:46,3," + "9" * 5000 + "\n", "line 2: GeneratedTokens must be a whole number"),
        (AZURE + "2023-11-16 18:15:46,3,10000001\n", "GeneratedTokens must be .* to 10,000,000"),
        (AZURE + "2023-11-16 18:15:46,nan,4\n", "ContextTokens must be"),
        (AZURE + '2023-11-16 18:15:46,"3,4\n', "line 2: this is no row of a CSV file"),
        (BURST + "nan,m,1,1,2,x\n", "line 2: Timestamp must be a number of seconds"),
        (BURST + "-1,m,1,1,2,x\n", "Timestamp must be"),
        (BURST + "1e400,m,1,1,2,x\n", "Timestamp must be"),
        (ROW % (0, 10, 5, "[1]") + '{"timestamp": 0, "input_le', "line 2: this is no row of Mooncake's"),
        (ROW % ("NaN", 10, 5, "[1]"), "line 1: this is no row"),
        (ROW % (-1, 10, 5, "[1]"), r"\$.timestamp"),
        (ROW % (0, "9" * 5000, 5, "[1]"), r"\$.input_length"),
        (ROW % (0, 10, "true", "[1]"), r"\$.output_length"),
        (ROW % (0, 10, 5, "[1, 2]"), "hash_ids has 2 blocks; 10 tokens have at most 1"),
        (ROW % (0, 10, 5, "[%s]" % ("9" * 30)), r"\$.hash_ids"),
        ('{"timestamp": 0, "output_length": 3}\n', "missing required field `input_length`"),
        ('{"a": ' * 50_000, "line 1: this is no row"),
    ],
)
def test_what_is_wrong_is_named(file: Path, text: str, what: str) -> None:
    file.write_text(text)
    with pytest.raises(UserError, match=what) as e:
        read(file)
    assert str(file) in e.value.message
    assert len(e.value.message) < 600
    assert e.value.param == "trace"


def test_sizes_are_bounded(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(AZURE.encode() + b"x" * (traces.LINE + 1))
    with pytest.raises(UserError, match="line 2: it has more than 1048576 bytes"):
        read(file)
    file.write_bytes(AZURE.encode() + b"2023-11-16 18:15:46,3,4\n\xff\xfe,1,2\n")
    with pytest.raises(UserError, match="line 3: this is not UTF-8"):
        read(file)
    file.write_text(AZURE + "2023-11-16 18:15:46,3,4\n" * 10)
    monkeypatch.setattr(traces, "ROWS", 5)
    with pytest.raises(UserError, match="more than 5 rows"):
        read(file)
    monkeypatch.setattr(traces, "LARGEST", 100)
    with pytest.raises(UserError, match="cut it"):
        read(file)


def test_no_file(file: Path) -> None:
    for path in (file, file.parent):
        with pytest.raises(UserError, match="cannot be read"):
            read(path)


@pytest.mark.parametrize(
    ("name", "rows", "first"),
    [("azure_llm_2023_conv.csv", 19_366, (374, 44)), ("mooncake_conversation.jsonl", 12_031, (6758, 500))],
)
def test_the_published_files(name: str, rows: int, first: tuple[int, int]) -> None:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not here")
    trace = read(path)
    assert len(trace.rows) + trace.skipped == rows
    assert trace.rows[0][1:3] == first
