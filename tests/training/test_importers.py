"""Feedback of other programs: their real forms come in once, with stable raters; whatever else comes is counted, not stored."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from app.core.errors import InvalidRequest
from app.db.database import Database
from app.db.feedback import Feedback
from app.training.foreign_values import without_thinking
from app.training.importers import ImportFormat, ImportReport, import_feedback
from tests.db import make

QUESTION, ANSWER = "What does ls do?", "It deletes files."


def openwebui(message: str = "m2", **changes: Any) -> dict[str, Any]:
    """A feedback as Open WebUI exports it."""
    turns = {
        "m1": {"id": "m1", "parentId": None, "childrenIds": ["m2", "m3"], "role": "user", "content": QUESTION},
        "m2": {"id": "m2", "parentId": "m1", "role": "assistant", "model": "llama", "content": ANSWER},
        "m3": {
            "id": "m3",
            "parentId": "m1",
            "role": "assistant",
            "model": "phi",
            "content": '<details type="reasoning" done="true">\n<summary>Thought</summary>\nhm\n</details>\nIt lists files.',
        },
    }
    return {
        "id": f"f-{message}",
        "user_id": "u-1",
        "version": 0,
        "type": "rating",
        "data": {
            "rating": -1,
            "model_id": "llama",
            "sibling_model_ids": None,
            "reason": "not_helpful",
            "comment": "no",
            "tags": ["linux"],
        },
        "meta": {"arena": False, "chat_id": "c1", "message_id": message, "message_index": 2},
        "snapshot": {
            "chat": {"id": "c1", "title": "t", "chat": {"params": {"system": "Be brief."}, "history": {"messages": turns}}}
        },
        "created_at": 1704067200,
        "updated_at": 1704067200,
        **changes,
    }


ARENA = openwebui("m3", data={"rating": "1", "model_id": "phi", "sibling_model_ids": ["llama"]})

LANGFUSE: list[dict[str, Any]] = [
    {
        "id": "t1",
        "timestamp": "2024-05-29 13:46:19.963000",
        "user_id": "u-1",
        "input": json.dumps({"messages": [{"role": "user", "content": QUESTION}]}),
        "output": json.dumps({"role": "assistant", "content": ANSWER}),
    },
    {
        "id": "o1",
        "trace_id": "t1",
        "input": [{"role": "user", "content": QUESTION}],
        "output": ANSWER,
        "provided_model_name": "gpt-4o",
    },
    {
        "id": "s1",
        "trace_id": "t1",
        "name": "thumbs",
        "value": 0,
        "data_type": "BOOLEAN",
        "source": "API",
        "comment": "wrong",
        "timestamp": "2024-05-29 13:47:00.000000",
    },
    {
        "id": "s2",
        "traceId": "t1",
        "observationId": "o1",
        "name": "quality",
        "stringValue": "good",
        "dataType": "CATEGORICAL",
        "source": "ANNOTATION",
        "authorUserId": "a",
    },
    {"id": "s3", "trace_id": "t1", "name": "judge", "value": 1, "data_type": "BOOLEAN", "source": "EVAL"},
    {"id": "s4", "trace_id": "t1", "name": "relevance", "value": 0.73, "data_type": "NUMERIC", "source": "API"},
    {"id": "s5", "trace_id": "gone", "name": "thumbs", "value": 1, "data_type": "BOOLEAN", "source": "API"},
    {
        "id": "s6",
        "trace_id": "t1",
        "name": "output",
        "long_string_value": "It lists files.",
        "data_type": "CORRECTION",
        "source": "ANNOTATION",
    },
]

INFERENCE = "01942e26-910b-7ab1-a645-46bc4463a001"
TENSORZERO: list[dict[str, Any]] = [
    {
        "id": "0192ced0-a8a4-7472-8a02-d45ad8b75a67",
        "target_id": INFERENCE,
        "metric_name": "goated",
        "value": False,
        "tags": {"user_id": "7"},
    },
    {
        "id": "0193fbb4-c749-72f3-b1ca-be79eec50c91",
        "inference_id": INFERENCE,
        "value": json.dumps([{"type": "text", "text": "It lists files."}]),
        "tags": {"user_id": "7"},
    },
    {
        "id": "01944339-00dc-7aa2-843a-74ebdf5d5d60",
        "target_id": INFERENCE,
        "target_type": "inference",
        "value": "no",
        "tags": {"user_id": "7"},
    },
    {"id": "01944339-00dc-7aa2-843a-74ebdf5d5d61", "target_id": INFERENCE, "target_type": "episode", "value": "a", "tags": {}},
    {
        "id": INFERENCE,
        "function_name": "answer_question",
        "variant_name": "baseline",
        "episode_id": "01942e26-51eb-7d12-82d5-c639332d11ff",
        "input": json.dumps(
            {"system": "Be brief.", "messages": [{"role": "user", "content": [{"type": "text", "value": QUESTION}]}]}
        ),
        "output": json.dumps([{"type": "text", "text": ANSWER}]),
        "tags": {},
    },
    {"id": "0192ced0-a8a4-7472-8a02-d45ad8b75a68", "target_id": "gone", "metric_name": "goated", "value": True, "tags": {}},
]

TRL: list[dict[str, Any]] = [
    {"prompt": QUESTION, "completion": "It lists files."},
    {"prompt": QUESTION, "completion": ANSWER, "label": False},
    {"prompt": QUESTION, "chosen": "It lists files.", "rejected": ANSWER},
    {"text": "plain"},
]


def written(folder: Path, rows: Any, name: str = "file.json") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows) if name.endswith("l") else json.dumps(rows))
    return path


async def imported(database: Database, format: ImportFormat, *paths: Path, owner: str = "", **more: Any) -> ImportReport:
    owner = owner or (await make.stored_user(database)).id
    return await import_feedback(paths, format, store=Feedback(database), owner=owner, **{"review": "pending", **more})


async def test_open_webui(tmp_path: Path, sqlite: Database) -> None:
    rows = [openwebui(), ARENA, openwebui(snapshot=None), openwebui(data={"rating": None}), {"x": 1}, 7]
    report = await imported(sqlite, "openwebui", written(tmp_path, rows))
    assert (report.read, report.stored, report.already) == (6, 2, 0)
    assert sum(report.skipped.values()) == 4
    found = [item async for item in Feedback(sqlite).export()]
    down, arena = sorted(found, key=lambda item: item[0].rating or "")
    said, prediction, _ = down
    assert (said.rating, said.comment, said.tags, said.review) == ("down", "no", ("not_helpful", "linux"), "pending")
    assert said.rater.startswith("import:openwebui:")
    assert "u-1" not in said.rater
    assert said.created_at.year == 2024
    assert prediction.input["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    assert (prediction.output, prediction.model, prediction.provider) == (ANSWER, "llama", "import")
    said, prediction, worse = arena
    assert (said.rating, prediction.output) == ("up", "It lists files.")
    assert worse is not None
    assert worse.output == ANSWER
    assert said.rater == down[0].rater


@pytest.mark.parametrize("name", ["file.json", "file.jsonl", "page.json"])
async def test_langfuse(tmp_path: Path, sqlite: Database, name: str) -> None:
    rows: Any = {"data": LANGFUSE} if name == "page.json" else LANGFUSE
    report = await imported(sqlite, "langfuse", written(tmp_path, rows, name))
    assert (report.read, report.stored) == (8, 3)
    assert dict(report.skipped) == {
        "given by an evaluator, not by a person": 1,
        "neither a thumb up nor a thumb down": 1,
        "its trace is not in the file": 1,
    }
    found = [item async for item in Feedback(sqlite).export()]
    assert sorted((said.rating or "", said.correction or "") for said, _, _ in found) == [
        ("", "It lists files."),
        ("down", ""),
        ("up", ""),
    ]
    assert {prediction.output for _, prediction, _ in found} == {ANSWER}
    assert {prediction.model for _, prediction, _ in found} == {"gpt-4o", "unknown"}


async def test_langfuse_scores_as_csv_beside_their_traces(tmp_path: Path, sqlite: Database) -> None:
    scores = tmp_path / "scores.csv"
    scores.write_text(
        'id,trace_id,name,value,string_value,data_type,source,comment\ns1,t1,thumbs,1,"True",BOOLEAN,API,"a, ""b"""\n'
    )
    report = await imported(sqlite, "langfuse", scores, written(tmp_path, LANGFUSE[:2], "traces.jsonl"))
    assert (report.read, report.stored) == (3, 1)
    (said,) = await Feedback(sqlite).list()
    assert (said.rating, said.comment) == ("up", 'a, "b"')


async def test_tensorzero(tmp_path: Path, sqlite: Database) -> None:
    report = await imported(sqlite, "tensorzero", written(tmp_path, TENSORZERO, "rows.jsonl"))
    assert (report.read, report.stored, sum(report.skipped.values())) == (6, 1, 2)
    ((said, prediction, _),) = [item async for item in Feedback(sqlite).export()]
    assert (said.rating, said.correction, said.comment, said.tags) == ("down", "It lists files.", "no", ("goated",))
    assert prediction.input["messages"][-1] == {"role": "user", "content": QUESTION}
    assert (prediction.output, prediction.model) == (ANSWER, "answer_question/baseline")


async def test_trl(tmp_path: Path, sqlite: Database) -> None:
    report = await imported(sqlite, "trl", written(tmp_path, TRL, "rows.jsonl"), review="approved")
    assert (report.read, report.stored, sum(report.skipped.values())) == (4, 3, 1)
    found = [item async for item in Feedback(sqlite).export()]
    assert {said.review for said, _, _ in found} == {"approved"}
    assert {(said.rating, said.correction, worse and worse.output) for said, _, worse in found} == {
        (None, "It lists files.", None),
        ("down", None, None),
        (None, None, ANSWER),
    }


@pytest.mark.parametrize(
    ("format", "rows"), [("openwebui", [openwebui(), ARENA]), ("langfuse", LANGFUSE), ("tensorzero", TENSORZERO), ("trl", TRL)]
)
async def test_the_same_again_adds_nothing(tmp_path: Path, sqlite: Database, format: ImportFormat, rows: Any) -> None:
    path = written(tmp_path, [*rows, *rows])
    first = await imported(sqlite, format, path)
    again = await imported(sqlite, format, path)
    assert first.stored == len(await Feedback(sqlite).list())
    assert (again.stored, again.already) == (0, first.stored + first.already)


async def test_texts_that_feedback_may_not_hold_are_passed_over(tmp_path: Path, sqlite: Database) -> None:
    rows = [
        {"prompt": QUESTION, "completion": "x" * 5001},
        {"prompt": "a\x07", "completion": "b"},
        {"prompt": "a", "completion": "\ud800"},
    ]
    report = await imported(sqlite, "trl", written(tmp_path, rows, "rows.jsonl"))
    assert report.stored == 0
    assert sum(report.skipped.values()) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"\x80\x04\x95",
        b'{"a": NaN}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'[{"a": 1}',
        b'[{"a": 1} 2]',
        b'{"a": 1',
        b"[1,,2]",
        b'a,b\n"x',
        b"\xff\xfe,",
    ],
    ids=lambda content: repr(content[:12]),
)
async def test_what_is_no_such_file_is_refused(tmp_path: Path, sqlite: Database, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(InvalidRequest):
        await imported(sqlite, "langfuse", path)
    assert await Feedback(sqlite).list() == []


@pytest.mark.parametrize(
    "content",
    [
        b"".join(json.dumps({"prompt": f"p{number}", "completion": "a"}).encode() + b"\n" for number in range(450))
        + b"{broken",
        b"[" + b"1," * 250_000 + b"1]",
        b"[[" + b"[]," * 4_000_000 + b"1]]",
    ],
    ids=["broken behind two batches", "too many rows", "too many values"],
)
async def test_a_file_is_refused_before_any_of_it_is_stored(tmp_path: Path, sqlite: Database, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    owner = (await make.stored_user(sqlite)).id
    with pytest.raises(InvalidRequest):
        await imported(sqlite, "trl", path, owner=owner)
    assert await Feedback(sqlite).list() == []


async def test_what_no_row_of_a_dataset_can_hold_is_passed_over(tmp_path: Path, sqlite: Database) -> None:
    """Half a surrogate pair or an infinity within a tool call would end every export and every run after it."""

    def called(arguments: Any) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        prompt = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        return {"prompt": [*prompt, {"role": "user", "content": "b"}], "completion": "c"}

    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps(called(each)) + "\n" for each in ("\ud800", {"a": "\ud800"}, "inf", {"a": 1})).replace(
            '"inf"', "1e999"
        )
    )
    owner = (await make.stored_user(sqlite)).id
    report = await imported(sqlite, "trl", path, owner=owner)
    assert (report.stored, report.skipped["not a row in one of TRL's forms"]) == (1, 3)


async def test_a_chat_that_is_its_own_ancestor_is_passed_over(tmp_path: Path, sqlite: Database) -> None:
    row = openwebui()
    turns = row["snapshot"]["chat"]["chat"]["history"]["messages"]
    turns["m1"]["parentId"] = "m2"
    report = await imported(sqlite, "openwebui", written(tmp_path, [row]))
    assert report.skipped == {"the rated message is not in the chat": 1}


async def test_one_answer_does_not_fill_the_disk(tmp_path: Path, sqlite: Database) -> None:
    asked = {"messages": [{"role": "user", "content": "a"}]}
    trace = {"id": "t", "input": asked, "output": "b"}
    scores = [{"id": f"s{each}", "traceId": "t", "name": "n", "value": 1, "authorUserId": f"u{each}"} for each in range(50)]
    owner = (await make.stored_user(sqlite)).id
    report = await imported(sqlite, "langfuse", written(tmp_path, [trace, *scores]), owner=owner)
    assert (report.stored, report.skipped) == (20, {"more than 20 on one answer": 30})
    inference = {"id": "i", "function_name": "f", "input": asked, "output": "b"}
    votes = [{"metric_name": "m", "target_id": "i", "value": True, "tags": {"user_id": f"u{each}"}} for each in range(50)]
    report = await imported(sqlite, "tensorzero", written(tmp_path, [inference, *votes]), owner=owner)
    assert (report.stored, report.skipped) == (20, {"more than 20 on one answer": 30})


async def test_columns_that_are_not_there_break_nothing(tmp_path: Path, sqlite: Database) -> None:
    rows = [{"function_name": "f", "input": "a", "output": "b"}, {"target_type": "inference", "target_id": "None"}]
    report = await imported(sqlite, "tensorzero", written(tmp_path, rows))
    assert report.skipped == {"only a comment, or no demonstration in text": 1}


@pytest.mark.parametrize(
    ("format", "rows"), [("openwebui", [openwebui(), ARENA]), ("langfuse", LANGFUSE), ("tensorzero", TENSORZERO), ("trl", TRL)]
)
async def test_fields_of_any_type_break_nothing(tmp_path: Path, sqlite: Database, format: ImportFormat, rows: Any) -> None:
    """Every field of every row in turn holds something else."""
    chance = random.Random(7)
    odd: list[Any] = [
        None,
        True,
        0,
        -1,
        1e300,
        "",
        "\x00",
        "9" * 400,
        [],
        {},
        [[]],
        {"messages": 5},
        [None],
        "[1",
        "{}",
        {"role": []},
    ]
    owner = (await make.stored_user(sqlite)).id
    mutated = []
    for _ in range(150):
        copy = json.loads(json.dumps(rows))
        spots = list(_spots(copy))
        for holder, name in chance.sample(spots, min(3, len(spots))):
            holder[name] = chance.choice(odd)
        mutated += copy
    report = await imported(sqlite, format, written(tmp_path, mutated), owner=owner)
    assert report.read == len(mutated)
    for said, prediction, _ in [item async for item in Feedback(sqlite).export()]:
        assert isinstance(prediction.output, str)
        assert said.rating or said.correction or said.preferred_over


def _spots(value: Any) -> Any:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        yield value, name
        yield from _spots(inner)


@pytest.mark.timeout(20)
def test_reasoning_is_taken_out_however_much_there_is() -> None:
    part = '<details type="reasoning" done="true">hm</details>'
    assert without_thinking(f"{part}\nIt lists {part}files. <details>all</details>") == "It lists files. <details>all</details>"
    assert without_thinking('It lists. <details type="reasoning">cut') == "It lists."
    assert without_thinking(part * 200_000) == ""
