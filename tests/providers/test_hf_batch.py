"""The batch: whatever runs beside it, an answer is the one that transformers' ``generate`` gives for it alone."""

from __future__ import annotations

import queue
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch", reason="needs the extra `hf`")
    pytest.importorskip("transformers", reason="needs the extra `hf`")

from app.providers.workers.hf_batch import Batcher, Piece, Row, Runtime
from app.providers.workers.hf_request import Params
from app.providers.workers.hf_sample import Dice, sample
from app.providers.workers.hf_text import Decode
from tests.providers.hf_tiny import make_model, make_tokenizer

pytestmark = pytest.mark.torch

PATIENCE_S = 30
FOR_EVER = 1_000_000
"""So many tokens that a row ends only if it is made to."""


class Bench:
    """A batcher over a tiny model, with the pieces of each row in a queue. ``hold``: asked before every step of the model."""

    def __init__(self, model: Any, *, slots: int = 8, chunk: int = 256, ends: frozenset[int] = frozenset()) -> None:
        self.model = model
        tokenizer = make_tokenizer()
        self.decode: Decode = lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True))
        device = torch.device("cpu")
        runtime = Runtime(model, self.decode, ends, device, slots=slots, chunk=chunk, threads=1)
        self.errors: list[BaseException] = []
        self.batcher = Batcher(runtime, deliver=self._deliver, failed=self.errors.append)

    @staticmethod
    def _deliver(pieces: list[tuple[Row, Piece]]) -> None:
        for row, piece in pieces:
            row.receive(piece)

    def ask(self, prompt: list[int], most: int = 12, **params: Any) -> tuple[Row, queue.Queue[Piece]]:
        pieces: queue.Queue[Piece] = queue.Queue()
        row = Row(prompt, Params(**{"temperature": 0.0, **params}), most, pieces.put)
        self.batcher.submit(row)
        return row, pieces

    def text(self, pieces: queue.Queue[Piece]) -> str:
        text = ""
        while True:
            piece = pieces.get(timeout=PATIENCE_S)
            assert piece.error is None
            text += piece.text
            if piece.finish:
                return text

    def expected(self, prompt: list[int], most: int = 12) -> str:
        """What transformers' own loop says, without a batch."""
        out = self.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=most,
            do_sample=False, eos_token_id=[-1], pad_token_id=0,
        )  # fmt: skip
        return self.decode(out[0, len(prompt) :].tolist()).rstrip("\ufffd")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # for so small a model two threads only wait for each other


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(kind: str = "llama", **more: Any) -> Bench:
        made.append(Bench(make_model(kind=kind), **more))
        made[-1].batcher.start()
        return made[-1]

    yield make
    for one in made:
        one.batcher.stop()
        assert not one.errors


def prompts(count: int, *, longest: int = 60, seed: int = 1) -> list[list[int]]:
    dice = random.Random(seed)
    return [[dice.randrange(3, 400) for _ in range(dice.randrange(1, longest))] for _ in range(count)]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
@pytest.mark.parametrize("chunk", [16, 256])
def test_greedy_answers_in_a_mixed_batch_equal_generate(bench: Callable[..., Bench], kind: str, chunk: int) -> None:
    one = bench(kind, slots=5, chunk=chunk)
    asked = prompts(8, longest=40)
    lengths = [2 + (number * 5) % 11 for number in range(8)]
    waiting = [one.ask(prompt, most)[1] for prompt, most in zip(asked, lengths, strict=True)]
    texts = [one.text(pieces) for pieces in waiting]
    assert texts == [one.expected(prompt, most) for prompt, most in zip(asked, lengths, strict=True)]
    assert len(set(texts)) > 4  # the model is not stuck on one token


def test_a_row_that_joins_late_and_a_longer_one_do_not_move_the_others(bench: Callable[..., Bench]) -> None:
    one = bench(slots=8)
    short, long = prompts(2, longest=8), prompts(1, longest=2)[0] * 150
    first = one.ask(short[0], 60)[1]
    early = first.get(timeout=PATIENCE_S).text
    later = [one.ask(prompt, 20)[1] for prompt in (long, short[1])]
    assert early + one.text(first) == one.expected(short[0], 60)
    assert [one.text(pieces) for pieces in later] == [one.expected(prompt, 20) for prompt in (long, short[1])]


def test_the_buffer_is_reused_over_hundreds_of_columns(bench: Callable[..., Bench]) -> None:
    """Rows come and go for longer than the buffer is wide: columns are reclaimed, and nothing is lost in the move."""
    one = bench(slots=3)
    asked = prompts(12, longest=40, seed=5)
    lengths = [70 + 5 * number for number in range(12)]
    waiting = [one.ask(prompt, most)[1] for prompt, most in zip(asked, lengths, strict=True)]
    texts = [one.text(pieces) for pieces in waiting]
    assert one.batcher.stats()["steps"] > 300
    checked = (3, 11)  # the last ones ran after the first moves; generate is slow
    assert [texts[number] for number in checked] == [one.expected(asked[number], lengths[number]) for number in checked]


def test_a_cancelled_row_leaves_before_the_next_step(bench: Callable[..., Bench]) -> None:
    one = bench(slots=2)
    rows = [one.ask(prompt, FOR_EVER) for prompt in prompts(2)]
    for _, pieces in rows:
        pieces.get(timeout=PATIENCE_S)
    kept, waits = rows[1][1], one.ask([5, 6, 7], 4)[1]
    rows[0][0].cancelled = True
    one.text(waits)  # there were two slots: it came in only because the first row left
    assert one.batcher.stats()["running"] <= 1
    rows[1][0].cancelled = True
    assert kept.get(timeout=PATIENCE_S).finish is None


def test_cancelled_while_waiting_or_being_read(bench: Callable[..., Bench]) -> None:
    one = bench(slots=1, chunk=16)
    running = one.ask([4, 5], FOR_EVER)
    running[1].get(timeout=PATIENCE_S)
    queued = [one.ask(list(range(3, 300)), 10) for _ in range(3)]
    for row, _ in queued:
        row.cancelled = True
    running[0].cancelled = True
    assert one.text(one.ask([9, 8, 7], 6)[1]) == one.expected([9, 8, 7], 6)
    assert all(pieces.empty() for _, pieces in queued)


def test_end_tokens_end_an_answer_and_are_not_said(bench: Callable[..., Bench]) -> None:
    plain = bench()
    prompt = [17, 33, 51]
    ids = plain.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=[-1], pad_token_id=0)
    said = ids[0, 3:].tolist()
    end = said[5]
    one = bench(ends=frozenset({end}))
    row, pieces = one.ask(prompt)
    assert one.text(pieces) == one.decode(said[: said.index(end)]).rstrip("\ufffd")
    assert row.tokens == said.index(end) + 1


def test_the_same_seed_gives_the_same_answer_whatever_runs_beside_it(bench: Callable[..., Bench]) -> None:
    one = bench(slots=6)
    prompt = [40, 41, 42]
    settings = {"temperature": 1.0, "top_p": 0.9, "seed": 11}
    alone = one.text(one.ask(prompt, 20, **settings)[1])
    others = [one.ask(other, 30, temperature=1.3, seed=number)[1] for number, other in enumerate(prompts(4))]
    together = one.text(one.ask(prompt, 20, **settings)[1])
    assert alone == together
    assert one.text(one.ask(prompt, 20, temperature=1.0, top_p=0.9, seed=12)[1]) != alone
    for pieces in others:
        one.text(pieces)


def test_logprobs_are_the_models_own(bench: Callable[..., Bench]) -> None:
    one = bench()
    prompt = [40, 41, 42]
    pieces = one.ask(prompt, 4, logprobs=3)[1]
    scores: list[tuple[int, Any]] = []
    while True:
        piece = pieces.get(timeout=PATIENCE_S)
        scores += piece.scores
        if piece.finish:
            break
    with torch.inference_mode():
        logs = one.model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    token, first = scores[0]
    assert len(scores) == 4
    assert token == int(logs.argmax())
    assert first.chosen == pytest.approx(float(logs.max()), abs=1e-3)
    assert [number for number, _ in first.top] == logs.topk(3).indices.tolist()


def dice(count: int, **params: Any) -> list[Dice]:
    return [Dice(Params(**{"seed": number, **params})) for number in range(count)]


def test_sampling_follows_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2, 0.0]).log().expand(4000, 4)
    counts = torch.bincount(torch.tensor(sample(logits, dice(4000)).tokens), minlength=4)
    assert counts[3] == 0
    assert (counts / 4000).tolist() == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=0.04)


def test_top_p_cuts_the_tail_and_temperature_zero_takes_the_best() -> None:
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log().expand(500, 4)
    assert set(sample(logits, dice(500, top_p=0.7)).tokens) == {1, 2}
    assert set(sample(logits, dice(500, top_p=0.0)).tokens) == {1}
    assert set(sample(logits, dice(500, temperature=0.0)).tokens) == {1}
    assert set(sample(logits, dice(500, temperature=1e-6)).tokens) == {1}


def test_top_p_over_a_flat_large_vocabulary_looks_at_all_of_it() -> None:
    tokens = sample(torch.zeros(300, 5000), dice(300, top_p=0.99)).tokens
    assert max(tokens) > 4000


def test_penalties_and_biases_move_one_row_only() -> None:
    pair = [Dice(Params(temperature=0.0, frequency_penalty=2.0)), Dice(Params(temperature=0.0))]
    for one in pair:
        one.count(1)
        one.count(1)
    logits = torch.tensor([[0.0, 3.0, 1.0]] * 2)
    assert sample(logits, pair).tokens == [2, 1]
    assert sample(logits[:1], [Dice(Params(temperature=0.0, logit_bias={0: 50.0, 9999: 100.0}))]).tokens == [0]
