"""What the trainer reads: jobs, rows, templates. Hostile input ends in words, sound input in the tokens that are served."""

from __future__ import annotations

import copy
import importlib.util
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from app.training.config import TrainConfig
from app.training.worker.job import TrainingFailed, read_job
from app.training.worker.rows import rows_of
from tests.training import tiny

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the extra `hf`")

_NASTY: list[Any] = [
    None, True, -1, 0, 1.5, 2**70, 1e308, "", "x", "x" * 70_000, "\x00", "../..", "/etc", "/proc/self/environ", "a\nb",
    [], [[]], {}, {"a": 1}, float("nan"), float("inf"), "\ud800", [None] * 100, "0" * 64,
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose base is a file that nobody opens here."""
    data = tmp_path_factory.mktemp("data")
    base = data / "base.gguf"
    base.write_bytes(b"GGUF")
    return tiny.make_run(data, base, tiny.sft_rows(3))


def _places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something can be put in place of what is there."""
    if path:
        yield path
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield from _places(tree[key], (*path, key))


def _changed(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    found = copy.deepcopy(tree)
    at = found
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return found


def test_two_hundred_broken_jobs_are_refused_in_words(run: Path) -> None:
    sound = json.loads((run / "job.json").read_text())
    dice = random.Random(5)
    places = list(_places(sound))
    refused = 0
    for _ in range(200):
        broken = _changed(sound, dice.choice(places), dice.choice(_NASTY))
        if dice.random() < 0.1:
            broken[dice.choice(["extra", "../x", "x" * 5000])] = 1
        (run / "job.json").write_text(json.dumps(broken))
        if words := _refusal(lambda: read_job(run)):
            refused += 1
            assert len(words) < 400 and words.startswith("job.json")
            assert str(run) not in words and "xxx" not in words and "../x" not in words
    assert refused > 150  # the others changed a number to another one that is allowed
    (run / "job.json").write_text(json.dumps(sound))
    assert read_job(run).config == TrainConfig.model_validate(sound["config"])


@pytest.mark.parametrize(
    "text",
    [b"", b"null", b"[]", b"{", b"\xff", b'{"a": NaN}', b"[" * 100_000, b'{"a": 1e999}', b'"\\ud800"', b" " * (2 << 20)],
)
def test_what_is_no_json_is_no_job(run: Path, text: bytes) -> None:
    sound = (run / "job.json").read_bytes()
    (run / "job.json").write_bytes(text)
    with pytest.raises(TrainingFailed, match=r"job\.json"):
        read_job(run)
    (run / "job.json").write_bytes(sound)


@pytest.mark.parametrize("field", ["snapshot", "adapters"])
@pytest.mark.parametrize("path", ["/etc", "/", "{data}/../elsewhere", "{data}/link"])
def test_a_job_stays_in_its_data_directory(run: Path, field: str, path: str) -> None:
    data = run.parent.parent
    if not (data / "link").exists():
        (data / "link").symlink_to("/etc")
    sound = (run / "job.json").read_text()
    (run / "job.json").write_text(json.dumps({**json.loads(sound), field: path.format(data=data)}))
    with pytest.raises(TrainingFailed, match=f"{field} must lie in the data directory"):
        read_job(run)
    (run / "job.json").write_text(sound)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"nonsense\n", "Row 1 .* not valid JSON"),
        (b"{}\n[]\n", "Row 2 .* not an object"),
        (b'{"a": NaN}\n', "Row 1 .* not valid JSON"),
        (b'{"a": "' + b"x" * (9 << 20) + b'"}\n', "larger than 8 MiB"),
    ],
)
def test_a_file_of_rows_that_is_none(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "train.jsonl").write_bytes(text)
    with pytest.raises(TrainingFailed, match=words):
        list(rows_of(tmp_path / "train.jsonl"))
    with pytest.raises(TrainingFailed, match="missing"):
        list(rows_of(tmp_path / "absent"))


def _format(**more: Any) -> Any:
    from app.training.worker.template import TrainingFormat
    from tests.providers.hf_tiny import make_tokenizer

    template = {"template": more.pop("tokenizer_template")} if "tokenizer_template" in more else {}
    return TrainingFormat(make_tokenizer(**template), frozenset({2}), **more)


def _config(method: str, **more: Any) -> TrainConfig:
    return TrainConfig.model_validate({"method": method, **more})


def _refusal(work: Callable[[], object]) -> str | None:
    """The words in which ``work`` was refused, or None."""
    try:
        work()
    except TrainingFailed as failed:
        return failed.detail
    return None


def _data(path: Path, rows: list[Any], method: str = "sft", most_tokens: int = 256, format: Any = None) -> Any:
    from app.training.worker.data import read_data

    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_data(path, _config(method), format or _format(), most_tokens=most_tokens)


@needs_torch
@pytest.mark.torch
def test_two_hundred_broken_rows_are_refused_left_out_or_sound(tmp_path: Path) -> None:
    dice, format = random.Random(6), _format()
    kinds = [tiny.sft_rows(2), tiny.dpo_rows(2), tiny.kto_rows(2)]
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    for number in range(200):
        sound = dice.choice(kinds)
        row = {**sound[0], "tools": [call]} if number % 5 == 0 else sound[0]
        broken = _changed(row, dice.choice(list(_places(row))), dice.choice(_NASTY))
        rows = [*sound, broken]
        words = _refusal(partial(_data, tmp_path / "rows", rows, sound[0]["kind"], format=format))
        assert words is None or ("Row 3" in words and len(words) < 200 and "xxx" not in words)


@needs_torch
@pytest.mark.torch
def test_rows_become_examples(tmp_path: Path) -> None:
    long = {**tiny.sft_rows(1)[0], "completion": [tiny.assistant("word " * 300)]}
    weightless = {**tiny.sft_rows(1)[0], "weight": 0}
    data = _data(tmp_path / "a", [*tiny.sft_rows(3, weight=0.25), long, weightless, *tiny.kto_rows(2)])
    assert (len(data.examples), data.other, dict(data.left_out)) == (3, 2, {"too long": 1, "without weight": 1})
    assert [each.weight for each in data.examples] == [0.25] * 3 and [each.number for each in data.examples] == [0, 1, 2]
    pairs = _data(
        tmp_path / "b", [*tiny.dpo_rows(1), *tiny.sft_rows(1), *tiny.sft_rows(2, original=[tiny.assistant("no")])], "dpo"
    )
    assert [len(each.rows) for each in pairs.examples] == [2, 2, 2] and pairs.other == 1
    rated = _data(tmp_path / "c", tiny.kto_rows(6), "kto")
    assert [each.desirable for each in rated.examples] == [False, True, True, False, True, True]
    assert rated.desirable_balance == 0.5
    for rows, method, words in [
        (tiny.kto_rows(1), "sft", "no rows"),
        (tiny.kto_rows(1), "kto", "only one of the two"),
        ([long], "sft", "too long"),
        ([], "sft", "no rows"),
    ]:
        with pytest.raises(TrainingFailed, match=words):
            _data(tmp_path / "d", rows, method)


@needs_torch
@pytest.mark.torch
def test_the_answer_alone_is_learnt_and_the_prompt_is_the_served_one() -> None:
    from app.providers.workers.hf_chat import ChatFormat
    from tests.providers.hf_tiny import make_tokenizer

    tokenizer = make_tokenizer()
    messages = [tiny.user("What is <|im_end|> for?")]
    row = _format().render(messages, tiny.assistant("It ends\na turn: <|im_end|>."))
    served = ChatFormat(tokenizer).encode(messages)
    assert row.tokens[: len(served)] == served == _format().prompt(messages)
    assert list(row.learn) == [False] * len(served) + [True] * (len(row.tokens) - len(served))
    answer = row.tokens[len(served) :]
    assert answer[-1] == 2 and 2 not in answer[:-1]
    assert tokenizer.decode(answer[:-1]) == "It ends\na turn: <|im_end|>."
    whole = tokenizer.apply_chat_template([*messages, tiny.assistant("Hello")], sanitize_control_tokens=True)["input_ids"]
    hello = _format().render(messages, tiny.assistant("Hello")).tokens
    assert whole[: len(hello)] == hello  # the rest is what stands between two turns


@needs_torch
@pytest.mark.torch
def test_a_model_without_a_template_learns_the_plain_one() -> None:
    format = _format(tokenizer_template=None)
    row = format.render([tiny.user("Hi")], tiny.assistant("Hello"))
    assert row.tokens[: len(format.prompt([tiny.user("Hi")]))] == format.prompt([tiny.user("Hi")])
    assert row.tokens[-1] == 2 and sum(row.learn) == len(row.tokens) - len(format.prompt([tiny.user("Hi")]))


@needs_torch
@pytest.mark.torch
@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{% for m in messages %}{{ m['content'] }}{{ loop.last }}{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
            "cannot be trained",
        ),
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "cannot be trained"),
        (
            "{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}{{ messages[0]['content'] }}",
            "question and its answer",
        ),
    ],
)
def test_a_template_that_is_not_prompt_and_answer_is_refused(template: str, words: str) -> None:
    with pytest.raises(TrainingFailed, match=words):
        _format(template=template)


@needs_torch
@pytest.mark.torch
def test_letters_on_both_sides_of_the_border_stay_apart() -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    template += "{% if m['role'] == 'assistant' %}<|im_end|>{% endif %}\n{% endfor %}"
    template += "{% if add_generation_prompt %}assistant: {% endif %}"
    format = _format(template=template)
    prompt = format.prompt([tiny.user("Hi")])
    for text in ("word", " word", "\n\nword"):
        row = format.render([tiny.user("Hi")], tiny.assistant(text))
        assert row.tokens[: len(prompt)] == prompt and row.tokens[-1] == 2


@needs_torch
@pytest.mark.torch
def test_tools_are_told_as_the_engine_tells_them() -> None:
    from app.training.worker.template import RowRefused
    from tests.providers.hf_tiny import make_tokenizer

    tool = {
        "type": "function",
        "function": {"name": "weather", "description": "The weather.", "parameters": {"type": "object"}},
    }
    call = {"type": "function", "id": "1", "function": {"name": "weather", "arguments": {"place": "Lima"}}}
    row = _format(wire=True).render([tiny.user("Weather?")], {**tiny.assistant(""), "tool_calls": [call]}, [tool])
    text = make_tokenizer().decode(row.tokens)
    assert "You can call functions" in text and '{"name": "weather", "arguments": {"place": "Lima"}}' in text
    with pytest.raises(RowRefused, match="no tools"):
        _format().render([tiny.user("Weather?")], tiny.assistant("Sunny"), [tool])


@needs_torch
@pytest.mark.torch
def test_the_order_is_the_seeds_alone() -> None:
    from app.training.worker.data import Order

    order = Order(10, batch=4, epochs=2.5, seed=1)
    assert order.steps == 8
    for epoch in (0, 1):
        seen = [number for step in range(3) for number in order.step(epoch * 3 + step)]
        assert sorted(seen) == list(range(10))
    assert [len(order.step(step)) for step in range(3)] == [4, 4, 2]
    assert order.step(0) == Order(10, batch=4, epochs=2.5, seed=1).step(0) != order.step(3)
    assert [Order(10, batch=10, epochs=1, seed=seed).step(0) for seed in (1, 2)] != [
        Order(10, batch=10, epochs=1, seed=1).step(0)
    ] * 2
    assert Order(3, batch=16, epochs=0.1, seed=0).steps == 1


@needs_torch
@pytest.mark.torch
def test_the_learning_rate_rises_and_falls() -> None:
    from app.training.worker.optimizer import learning_rate

    config = _config("sft", learning_rate=1.0e-2, warmup=0.25)
    rates = [learning_rate(config, step, 8) for step in range(8)]
    assert rates[:3] == pytest.approx([5e-3, 1e-2, 1e-2]) and rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] > 0
    constant = config.model_copy(update={"schedule": "constant", "warmup": 0.0})
    assert {learning_rate(constant, step, 8) for step in range(8)} == {1e-2}
    assert learning_rate(config.model_copy(update={"schedule": "cosine"}), 7, 8) < rates[-1]
