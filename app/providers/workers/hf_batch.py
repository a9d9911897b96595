"""Continuous batching: one thread, one batch that rows join and leave between two steps.

A step reads all weights once, whether for one answer or for thirty; so answers that run at the same time share each step. New
prompts are read in pieces between the steps of the running ones, so that nobody's stream stands still for long, and a row
whose reader has gone is dropped before the next step. Knows no HTTP and no files: it is given a model and hands out pieces.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from app.providers.workers.hf_cache import RowCache
from app.providers.workers.hf_request import Params
from app.providers.workers.hf_sample import Dice, Sampled, TokenScores, sample
from app.providers.workers.hf_text import Decode, TextStream

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """What a step gave to one row. ``finish``: why it ended, with its last piece; ``error``: words for the caller instead."""

    text: str = ""
    scores: tuple[tuple[int, TokenScores], ...] = ()
    finish: str | None = None
    error: str | None = None


@dataclass(eq=False, slots=True)
class Row:
    """One answer: its prompt's tokens, its settings, and what came of it so far. ``cancelled`` may be set from any thread."""

    prompt: list[int]
    params: Params
    most: int
    receive: Callable[[Piece], None]
    """Called in the thread that `Batcher` was told to deliver in."""
    cancelled: bool = False
    tokens: int = 0
    dice: Dice = field(init=False)
    text: TextStream | None = None
    scores: list[tuple[int, TokenScores]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dice = Dice(self.params)


class _Prefill:
    """Prompts that are being read together, left-padded to the longest."""

    def __init__(self, rows: list[Row], device: Any) -> None:
        self.rows = rows
        self.width = max(len(row.prompt) for row in rows)
        self.done = 0
        self.cache = DynamicCache()
        padded = [[0] * (self.width - len(row.prompt)) + row.prompt for row in rows]
        real = [[0] * (self.width - len(row.prompt)) + [1] * len(row.prompt) for row in rows]
        self.ids = torch.tensor(padded, device=device)
        self.mask = torch.tensor(real, device=device)
        self.positions = (self.mask.cumsum(dim=-1) - 1).clamp(min=0)


@dataclass(frozen=True, slots=True)
class Runtime:
    """The model as the batch needs it. ``chunk``: most prompt tokens read between two steps of the running answers."""

    model: Any
    decode: Decode
    end_tokens: frozenset[int]
    device: Any
    slots: int
    chunk: int
    threads: int


class Batcher:
    """The loop and its thread.

    Args:
        runtime: model, decoding and sizes.
        deliver: takes a step's pieces, in the batch's thread; brings them to where ``Row.receive`` may run.
        failed: called with an exception that the loop cannot survive.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        deliver: Callable[[list[tuple[Row, Piece]]], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._runtime = runtime
        self._deliver = deliver
        self._failed = failed
        self._waiting: deque[Row] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._prefill: _Prefill | None = None
        self._rows: list[Row] = []
        self._cache = RowCache(most_rows=runtime.slots)
        self._input: Any = None
        self._takes_positions = "position_ids" in inspect.signature(runtime.model.forward).parameters
        self._keeps = "logits_to_keep" in inspect.signature(runtime.model.forward).parameters
        self._thread = threading.Thread(target=self._run, name="batch", daemon=True)
        self.steps = 0
        self.tokens = 0

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, row: Row) -> None:
        """Puts a row in line."""
        with self._wake:
            self._waiting.append(row)
            self._wake.notify()

    def stop(self) -> None:
        """Ends the loop after the step it is in. What still runs gets no further piece."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def stats(self) -> dict[str, int]:
        """Rows running, being read and waiting; steps and tokens since the start."""
        prefill = self._prefill
        return {
            "running": len(self._rows),
            "reading": len(prefill.rows) if prefill else 0,
            "waiting": len(self._waiting),
            "steps": self.steps,
            "tokens": self.tokens,
        }

    def _run(self) -> None:
        try:
            torch.set_num_threads(self._runtime.threads)  # OpenMP keeps this number per thread
            with torch.inference_mode():
                while self._wait_for_work():
                    self._turn()
        except BaseException as error:  # noqa: BLE001 (handed on: the process must not stay with a dead loop)
            self._failed(error)

    def _wait_for_work(self) -> bool:
        with self._wake:
            while not (self._stopping or self._waiting or self._prefill or self._rows):
                self._wake.wait()
            return not self._stopping

    def _turn(self) -> None:
        """One piece of reading and one step of answering, whichever there is."""
        out: list[tuple[Row, Piece]] = []
        try:
            self._drop_cancelled()
            if self._prefill is None:
                self._prefill = self._next_prefill()
            if self._prefill is not None:
                self._read(self._prefill, out)
            if self._rows:
                self._step(out)
        except (MemoryError, torch.OutOfMemoryError) as error:
            _log.error("out of memory with %s", self.stats(), exc_info=error)
            out += [(row, Piece(error="The engine ran out of memory. Try a shorter prompt.")) for row in self._forget()]
        if out:
            self._deliver(out)

    def _forget(self) -> list[Row]:
        """Drops everything that is under way, and says what that was."""
        rows = self._rows + (self._prefill.rows if self._prefill else [])
        self._rows, self._prefill, self._input = [], None, None
        self._cache = RowCache(most_rows=self._runtime.slots)
        if self._runtime.device.type == "cuda":
            torch.cuda.empty_cache()
        return rows

    def _drop_cancelled(self) -> None:
        for at in range(len(self._rows) - 1, -1, -1):
            if self._rows[at].cancelled:
                self._remove(at)
        if self._prefill is not None and all(row.cancelled for row in self._prefill.rows):
            self._prefill = None

    def _remove(self, at: int) -> None:
        """Drops a running row; the last one takes its place, here, in the cache and in the next step's input."""
        last = len(self._rows) - 1
        if at != last:
            self._rows[at] = self._rows[last]
            self._input[at] = self._input[last]
        self._rows.pop()
        self._input = self._input[:last]
        self._cache.remove(at)

    def _next_prefill(self) -> _Prefill | None:
        """The next prompts to read together: in order of arrival, as long as padding them to one width costs little."""
        rows: list[Row] = []
        with self._wake:
            while self._waiting and len(self._rows) + len(rows) < self._runtime.slots:
                if self._waiting[0].cancelled:
                    self._waiting.popleft()
                    continue
                lengths = [len(row.prompt) for row in (*rows, self._waiting[0])]
                if rows and max(lengths) * len(lengths) > max(2 * sum(lengths), self._runtime.chunk):
                    break
                rows.append(self._waiting.popleft())
        return _Prefill(rows, self._runtime.device) if rows else None

    def _read(self, prefill: _Prefill, out: list[tuple[Row, Piece]]) -> None:
        """Reads the next piece of the prompts; after the last one their rows join the batch with their first token."""
        until = min(prefill.width, prefill.done + max(16, self._runtime.chunk // len(prefill.rows)))
        piece = slice(prefill.done, until)
        logits = self._forward(prefill.ids[:, piece], prefill.mask[:, :until], prefill.positions[:, piece], prefill.cache)
        prefill.done = until
        if until < prefill.width:
            return
        self._prefill = None
        self._cache.join(prefill.cache, [len(row.prompt) for row in prefill.rows])
        sampled = sample(logits, [row.dice for row in prefill.rows])
        behind = len(self._rows)
        self._rows += prefill.rows
        self._input = sampled.on_device if self._input is None else torch.cat([self._input, sampled.on_device])
        self._hand_out(sampled, behind, out)

    def _step(self, out: list[tuple[Row, Piece]]) -> None:
        """One token for every running row."""
        cache, device = self._cache, self._runtime.device
        cache.prepare()
        first = torch.tensor(cache.first, device=device)[:, None]
        columns = torch.arange(cache.end - cache.width, cache.end + 1, device=device)
        logits = self._forward(self._input[:, None], columns >= first, cache.end - first, cache)
        cache.advance()
        sampled = sample(logits, [row.dice for row in self._rows])
        self._input = sampled.on_device
        self.steps += 1
        self._hand_out(sampled, 0, out)

    def _forward(self, ids: Any, mask: Any, positions: Any, cache: Any) -> Any:
        more: dict[str, Any] = {"position_ids": positions} if self._takes_positions else {}
        if self._keeps:
            more["logits_to_keep"] = 1
        result = self._runtime.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **more)
        return result.logits[:, -1]

    def _hand_out(self, sampled: Sampled, behind: int, out: list[tuple[Row, Piece]]) -> None:
        """Gives each row from number ``behind`` on its token, and drops those that end with it."""
        ended = []
        for at, token in enumerate(sampled.tokens):
            row = self._rows[behind + at]
            piece = self._take(row, token, sampled.scores.get(at))
            if piece is not None:
                out.append((row, piece))
                if piece.finish:
                    ended.append(behind + at)
        for at in reversed(ended):
            self._remove(at)

    def _take(self, row: Row, token: int, scores: TokenScores | None) -> Piece | None:
        row.tokens += 1
        self.tokens += 1
        if row.text is None:
            row.text = TextStream(self._runtime.decode, row.params.stop)
        if token in self._runtime.end_tokens:
            return self._last(row, row.text.flush(), "stop")
        row.dice.count(token)
        if scores is not None:
            row.scores.append((token, scores))
        text = row.text.push(token)
        if row.text.stopped:
            return self._last(row, text, "stop")
        if row.tokens >= row.most:
            text += row.text.flush()
            return self._last(row, text, "stop" if row.text.stopped else "length")
        if not text:
            return None
        piece = Piece(text, tuple(row.scores))
        row.scores.clear()
        return piece

    @staticmethod
    def _last(row: Row, text: str, reason: str) -> Piece:
        return Piece(text, tuple(row.scores), finish=reason)
