"""Training rows from files: TRL's forms are read, and whatever else comes is refused with its line, without a trace."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import InvalidRequest
from app.core.settings import Settings
from app.db.database import Database
from app.db.feedback import Feedback
from app.db.snapshots import Snapshots
from app.training.rowfiles import MAX_LINE_BYTES, read_rows
from app.training.snapshots import SnapshotBuilder, SnapshotConfig, snapshot_folder, verify

USER = {"role": "user", "content": "What does ls do?"}
GOOD = {"role": "assistant", "content": "It lists files."}
BAD = {"role": "assistant", "content": "It deletes files."}
SFT: dict[str, Any] = {"prompt": [USER], "completion": [GOOD]}


def written(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"messages": [USER, GOOD]}, {"kind": "sft", "prompt": [USER], "completion": [GOOD]}),
        ({"prompt": USER["content"], "completion": GOOD["content"]}, {"kind": "sft", **SFT}),
        ({**SFT, "prediction_id": "x", "weight": 3}, {"kind": "sft", **SFT}),
        ({**SFT, "label": False}, {"kind": "kto", **SFT, "label": False}),
        (
            {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
            {"kind": "dpo", "prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        ),
        (
            {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
            {"kind": "dpo", "prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        ),
        (
            {"prompt": USER["content"], "chosen": GOOD["content"], "rejected": BAD["content"]},
            {"kind": "dpo", "prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        ),
        ({**SFT, "tools": [{"type": "function"}]}, {"kind": "sft", **SFT, "tools": [{"type": "function"}]}),
    ],
    ids=str,
)
def test_each_form_of_trl_is_read(tmp_path: Path, found: Any, expected: Any) -> None:
    assert list(read_rows(written(tmp_path, found))) == [expected]


WRONG: dict[str, tuple[Any, str]] = {
    "no object": ([1], "object"),
    "text": ("x", "object"),
    "no columns": ({}, "needs messages"),
    "plain text": ({"text": "hello"}, "needs messages"),
    "label of another type": ({**SFT, "label": "yes"}, "label"),
    "label as number": ({**SFT, "label": 1}, "label"),
    "prompt of another type": ({"prompt": 5, "completion": "x"}, "prompt"),
    "empty prompt": ({"prompt": "", "completion": "x"}, "prompt"),
    "no question": ({"prompt": [GOOD], "completion": "x"}, "question"),
    "empty answer": ({"prompt": "x", "completion": " "}, "completion"),
    "answer of a user": ({"prompt": "x", "completion": [USER]}, "assistant"),
    "two answers": ({"prompt": "x", "completion": [GOOD, GOOD]}, "one answer"),
    "no last answer": ({"messages": [USER]}, "messages"),
    "no messages": ({"messages": []}, "messages"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, GOOD]}, "more than text"),
    "unknown role": ({"messages": [{"role": "root", "content": "x"}, GOOD]}, "role"),
    "role of another type": ({"messages": [{"role": [], "content": "x"}, GOOD]}, "role"),
    "content of another type": ({"messages": [{"role": "user", "content": {"a": 1}}, GOOD]}, "content"),
    "the same twice": ({"prompt": "x", "chosen": "a", "rejected": "a"}, "same"),
    "different prompts": ({"chosen": [USER, GOOD], "rejected": [GOOD, BAD]}, "different"),
    "chosen without prompt": ({"chosen": "a", "rejected": "b"}, "prompt"),
    "control characters": ({"prompt": "a\x00b", "completion": "x"}, "U.0000"),
    "tools of another type": ({**SFT, "tools": "x"}, "tools"),
    "calls of another type": ({"messages": [USER, {**GOOD, "tool_calls": {"a": 1}}]}, "tool_calls"),
    "nan": (b'{"prompt": "x", "completion": "y", "label": NaN}\n', "JSON"),
    "lone surrogate": (b'{"prompt": "\\ud800", "completion": "y"}\n', "JSON|U\\+D800"),
    "broken utf-8": (b'{"prompt": "\xff\xfe", "completion": "y"}\n', "JSON"),
    "deep": (b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}\n", "deep"),
    "very deep": (b"[" * 90_000 + b"]" * 90_000 + b"\n", "deep"),
    "wide": (b'{"prompt": [' + b"{}," * 150_000 + b"{}]}\n", "many"),
    "too long": (b'{"prompt": "' + b"a" * MAX_LINE_BYTES + b'"}\n', "longer"),
    "cut": (b'{"prompt": "x", "completion": "y"', "JSON"),
    "pickle": (b"\x80\x04\x95\x10\x00\x00\x00\n", "JSON"),
    "zip": (b"PK\x03\x04" + bytes(range(256)) * 8, "JSON"),
    "two objects": (b"{} {}\n", "JSON"),
    "python": (b"{'prompt': 'x', 'completion': 'y'}\n", "JSON"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    row, words = WRONG[name]
    with pytest.raises(InvalidRequest, match=f"Line 3: .*({words})"):
        list(read_rows(written(tmp_path, SFT, b"\n", row)))


def test_an_empty_or_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no rows"):
        list(read_rows(written(tmp_path, b"\n\n")))
    with pytest.raises(InvalidRequest, match="no such file"):
        list(read_rows(tmp_path / "absent"))
    with pytest.raises(InvalidRequest, match="no such file"):
        list(read_rows(tmp_path))


@pytest.fixture
def builder(sqlite: Database, settings: Settings) -> SnapshotBuilder:
    return SnapshotBuilder(feedback=Feedback(sqlite), snapshots=Snapshots(sqlite), settings=settings)


def many(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {number}?", "completion": f"A number: {number}."} for number in range(count)]


async def test_a_file_becomes_a_snapshot(
    tmp_path: Path, sqlite: Database, settings: Settings, builder: SnapshotBuilder
) -> None:
    snapshot = await builder.build_from_file(written(tmp_path, *many(40)), SnapshotConfig(), actor=None)
    assert snapshot.source == "file"
    verify(snapshot, snapshot_folder(settings, snapshot.id))
    rows = await Snapshots(sqlite).rows(snapshot.id)
    assert {row.split for row in rows} == {"train", "heldout"}
    assert {(row.feedback_id, row.rater, row.weight) for row in rows} == {(None, None, 1.0)}


async def test_a_poisoned_file_leaves_nothing(
    tmp_path: Path, sqlite: Database, settings: Settings, builder: SnapshotBuilder
) -> None:
    """A hundred and fifty random mutations of a good file: taken whole or refused with a line, and nothing else."""
    chance = random.Random(5)
    good = written(tmp_path, *many(30)).read_bytes()
    refused, said = 0, list[str]()
    for _ in range(150):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randint(1, 30)]
                case 2:
                    data[at:at] = chance.choice(
                        [b"\x00", b'"', b"NaN", b"\xed\xa0\x80", b"[" * 50, b"\n", b"{", b"\\ud800", b"1e999"]
                    )
                case _:
                    data[at:at] = bytes(chance.randrange(256) for _ in range(20))
        path = tmp_path / "mutated.jsonl"
        path.write_bytes(data)
        try:
            rows = list(read_rows(path))
        except InvalidRequest as error:
            refused += 1
            said.append(error.detail)
            if refused <= 5:
                with pytest.raises(InvalidRequest, match="Line "):
                    await builder.build_from_file(path, SnapshotConfig(), actor=None)
        else:
            assert all(row["kind"] in ("sft", "dpo", "kto") for row in rows)
    assert refused > 100
    assert all(words.startswith("Line ") for words in said)
    assert await Snapshots(sqlite).list() == []
    assert not list(settings.data_dir.glob("snapshots/*"))
