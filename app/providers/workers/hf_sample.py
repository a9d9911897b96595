"""From scores to tokens: one vectorised pass over the rows of a batch, each row with its own settings and its own dice.

A row's random numbers come from its own generator, seeded by its request: what else is in the batch never moves them. The
scores stay on the device; one small copy a step brings the chosen tokens back.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from app.providers.workers.hf_request import Params

_NUCLEUS = 512
"""Candidates that are sorted first; the whole vocabulary only where they do not hold ``top_p`` of the probability."""


@dataclass(slots=True)
class Dice:
    """What sampling needs to know of one answer: its settings, its generator, and what it has said so far."""

    params: Params
    random: random.Random = field(init=False)
    counts: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.params.seed)  # noqa: S311 (sampling, not secrets); None takes the system's entropy

    def count(self, token: int) -> None:
        """Notes a token that was said, where a penalty will want to know."""
        if self.params.presence_penalty or self.params.frequency_penalty:
            self.counts[token] += 1

    def adjustments(self, size: int) -> dict[int, float]:
        """What to add to which scores."""
        params = self.params
        changes = {token: bias for token, bias in params.logit_bias.items() if token < size}
        for token, times in self.counts.items():
            penalty = params.presence_penalty + params.frequency_penalty * times
            changes[token] = changes.get(token, 0.0) - penalty
        return changes


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Log-probabilities of one chosen token and of the likeliest ones, before temperature and penalties."""

    chosen: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Sampled:
    """``on_device``: the tokens as the next step's input, ``[rows]``; ``tokens``: the same here; ``scores``: where asked."""

    on_device: Any
    tokens: list[int]
    scores: dict[int, TokenScores]


def sample(logits: Any, dice: Sequence[Dice]) -> Sampled:
    """Chooses the next token of every row.

    Args:
        logits: scores of shape ``[rows, vocabulary]``, any float type, on any device.
        dice: one for each row.
    """
    raw = logits.float()
    scores = _adjusted(raw, dice)
    chosen = scores.argmax(dim=-1)
    rolling = [row for row, die in enumerate(dice) if die.params.temperature > 0]
    if rolling:
        where = torch.tensor(rolling, device=raw.device)
        chosen[where] = _roll(scores[where], [dice[row] for row in rolling])
    return Sampled(chosen, chosen.tolist(), _scores(raw, chosen, dice))


def _adjusted(raw: Any, dice: Sequence[Dice]) -> Any:
    changes = [(row, token, by) for row, die in enumerate(dice) for token, by in die.adjustments(raw.shape[-1]).items()]
    if not changes:
        return raw
    rows, tokens, by = (torch.tensor(column, device=raw.device) for column in zip(*changes, strict=True))
    return raw.index_put((rows, tokens), by.to(raw.dtype), accumulate=True)


def _roll(scores: Any, dice: Sequence[Dice]) -> Any:
    temperature, top_p, luck = (
        torch.tensor(column, dtype=torch.float32, device=scores.device)[:, None]
        for column in zip(*((die.params.temperature, die.params.top_p, die.random.random()) for die in dice), strict=True)
    )
    # The best score is taken off first: a tiny temperature must not make infinities out of large scores.
    chances = ((scores - scores.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)
    if all(die.params.top_p >= 1 for die in dice):
        return _draw(chances, luck)
    likely, tokens = chances.topk(min(_NUCLEUS, chances.shape[-1]), dim=-1)
    if bool((likely.sum(dim=-1, keepdim=True) < top_p).any()):
        likely, tokens = chances.sort(dim=-1, descending=True)
    before = likely.cumsum(dim=-1) - likely
    keep = before < top_p
    keep[:, 0] = True  # top_p 0 means the likeliest one
    return tokens.gather(1, _draw(likely * keep, luck)[:, None])[:, 0]


def _draw(chances: Any, luck: Any) -> Any:
    """The index at which the running sum passes ``luck`` of the whole."""
    exact = torch.float32 if chances.device.type == "mps" else torch.float64  # 50,000 small terms add up
    running = chances.to(exact).cumsum(dim=-1)
    drawn = torch.searchsorted(running, luck.to(exact).clamp(max=1 - 2**-24) * running[:, -1:], right=True)
    return drawn.clamp(max=chances.shape[-1] - 1)[:, 0]


def _scores(raw: Any, chosen: Any, dice: Sequence[Dice]) -> dict[int, TokenScores]:
    rows = [row for row, die in enumerate(dice) if die.params.logprobs is not None]
    if not rows:
        return {}
    where = torch.tensor(rows, device=raw.device)
    logs = raw[where].log_softmax(dim=-1)
    mine = logs.gather(1, chosen[where][:, None])[:, 0].tolist()
    most = max(dice[row].params.logprobs or 0 for row in rows)
    best, tokens = (part.tolist() for part in logs.topk(min(most, logs.shape[-1]), dim=-1)) if most else ([()] * len(rows),) * 2
    return {
        row: TokenScores(mine[at], tuple(zip(tokens[at], best[at], strict=True))[: dice[row].params.logprobs or 0])
        for at, row in enumerate(rows)
    }
