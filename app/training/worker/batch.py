"""Rows as the trainer computes them: many token sequences in one line without padding, shared beginnings computed once.

Rows of a chat model begin alike (system prompt, template), and the two answers of a pair share a whole prompt. `pack` lays
sequences out as a tree of segments: a segment is computed once and attends to its ancestors, then to itself, causally. What
comes out is the same function of the weights as one sequence at a time. Not a tokenizer: it takes token ids and a mask.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

_WORTH_SHARING: Final = 8
"""Shorter common beginnings are not worth a segment of their own."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One sequence: ``tokens``, and for each whether it is to be learnt (not the first: nothing predicts it)."""

    tokens: Sequence[int]
    learn: Sequence[bool]


@dataclass(frozen=True, slots=True)
class Example:
    """What must stay in one batch: one row (``sft``, ``kto``) or a pair, chosen first (``dpo``).

    Attributes:
        rows: one or two sequences, each with at least one learnt token after its first.
        weight: of this example in the loss.
        desirable: ``kto``: whether the answer was good.
        number: the caller's number of the example; `Batch.numbers` repeats it.
        reference: log-probability of each row's learnt tokens (summed) under the reference; `Policy.reference` computes it.
    """

    rows: tuple[TokenRow, ...]
    weight: float = 1.0
    desirable: bool = True
    number: int = 0
    reference: tuple[float, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)

    @property
    def labels(self) -> int:
        return sum(sum(map(bool, row.learn[1:])) for row in self.rows)


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences that are computed together. T tokens laid out, S sequences, E examples, L labels.

    Attributes:
        tokens: int64 [T], segment after segment. positions: int64 [T], each token's place in its sequence.
        lengths: tokens of each segment; they sum up to T. parents: the segment before each segment, -1 for none.
        label_index: int64 [L], which of the T positions predicts each label. labels: int64 [L].
        label_sequence: int64 [L], in 0..S-1, never falling; sequences lie in the order of the examples and their rows.
        sequences: S. tokens_in: tokens of the sequences one by one, what the batch stands for (T is smaller where they share).
        weights: float32 [E]. desirable: bool [E]. reference: float32 [S], zeros where the examples had none.
        numbers: the examples' numbers.
    """

    tokens: Any
    positions: Any
    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    label_index: Any
    labels: Any
    label_sequence: Any
    sequences: int
    tokens_in: int
    weights: Any
    desirable: Any
    reference: Any
    numbers: tuple[int, ...]
    chains: tuple[int, ...] = field(default=())
    """The last segment of each sequence."""

    def to(self, device: Any) -> Batch:
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        rest = {name: getattr(self, name) for name in self.__slots__ if name not in _TENSORS}
        return Batch(**moved, **rest)

    def path(self, segment: int) -> list[int]:
        """The segments from the root to ``segment``, itself included."""
        path = [segment]
        while (parent := self.parents[path[-1]]) >= 0:
            path.append(parent)
        return path[::-1]

    def starts(self) -> list[int]:
        starts, at = [], 0
        for length in self.lengths:
            starts.append(at)
            at += length
        return starts

    def unrolled(self) -> Iterator[Any]:
        """For each sequence the int64 indices into T of its tokens in order: for models that know no tree."""
        starts = self.starts()
        for last in self.chains:
            pieces = [torch.arange(starts[each], starts[each] + self.lengths[each]) for each in self.path(last)]
            yield torch.cat(pieces)

    def sums(self, logprobs: Any) -> Any:
        """Per-sequence sums [S] of per-label values [L]; differentiable, summed in a fixed order."""
        counts = torch.bincount(self.label_sequence, minlength=self.sequences)
        return torch.stack([part.sum() for part in logprobs.split(counts.tolist())])


_TENSORS: Final = ("tokens", "positions", "label_index", "labels", "label_sequence", "weights", "desirable", "reference")


@dataclass(slots=True)
class _Node:
    """A segment while the tree grows."""

    begin: int
    tokens: Sequence[int]
    parent: int


def pack(examples: Sequence[Example], *, share: bool = True) -> Batch:
    """Lays ``examples`` out as one batch.

    Args:
        examples: at least one. Every row needs a learnt token after its first.
        share: compute common beginnings once.

    Raises:
        ValueError: no example, or a row without a label.
    """
    rows = [row for example in examples for row in example.rows]
    if not rows or any(len(row.tokens) != len(row.learn) or not any(row.learn[1:]) for row in rows):
        raise ValueError("every row needs as many marks as tokens, and a token to learn after its first")
    # What follows the last label, and the last label itself, predicts nothing.
    bodies = [row.tokens[: max(at for at, learnt in enumerate(row.learn) if learnt)] for row in rows]
    nodes, chains = _tree(bodies, share=share)
    starts, at = [], 0
    for node in nodes:
        starts.append(at)
        at += len(node.tokens)
    where: list[int] = []
    what: list[int] = []
    whose: list[int] = []
    for number, (row, chain) in enumerate(zip(rows, chains, strict=True)):
        places = [starts[each] + offset for each in chain for offset in range(len(nodes[each].tokens))]
        for position in range(1, len(places) + 1):
            if row.learn[position]:
                where.append(places[position - 1])
                what.append(int(row.tokens[position]))
                whose.append(number)
    return Batch(
        tokens=torch.tensor([token for node in nodes for token in node.tokens], dtype=torch.int64),
        positions=torch.cat([torch.arange(node.begin, node.begin + len(node.tokens)) for node in nodes]),
        lengths=tuple(len(node.tokens) for node in nodes),
        parents=tuple(node.parent for node in nodes),
        label_index=torch.tensor(where, dtype=torch.int64),
        labels=torch.tensor(what, dtype=torch.int64),
        label_sequence=torch.tensor(whose, dtype=torch.int64),
        sequences=len(rows),
        tokens_in=sum(len(row.tokens) for row in rows),
        weights=torch.tensor([example.weight for example in examples], dtype=torch.float32),
        desirable=torch.tensor([example.desirable for example in examples], dtype=torch.bool),
        reference=torch.tensor(
            [value for example in examples for value in (example.reference or (0.0,) * len(example.rows))], dtype=torch.float32
        ),
        numbers=tuple(example.number for example in examples),
        chains=tuple(chain[-1] for chain in chains),
    )


def split(examples: Sequence[Example], *, tokens: int, parts: int = 1, share: bool = True) -> list[Batch]:
    """``examples`` of one optimizer step as batches of about ``tokens`` tokens, if possible a multiple of ``parts`` many.

    The same examples give the same batches. Alike beginnings come together; the order within a step means nothing to a sum of
    gradients. An example longer than ``tokens`` gets a batch of its own.
    """
    ordered = sorted(examples, key=lambda example: (tuple(example.rows[0].tokens), example.number))
    sizes = [_fresh_tokens(example, before) for example, before in zip(ordered, [None, *ordered[:-1]], strict=True)]
    total = sum(sizes)
    count = max(1, -(-total // tokens))
    count = min(len(ordered), -(-count // parts) * parts)
    batches: list[list[Example]] = []
    done = 0
    for example, size in zip(ordered, sizes, strict=True):
        # The batch in which the middle of this example falls when the line is cut into equal pieces.
        place = min(count - 1, int((done + size / 2) * count / total))
        while len(batches) <= place and (not batches or batches[-1]):
            batches.append([])
        batches[-1].append(example)
        done += size
    return [pack(batch, share=share) for batch in batches if batch]


def _fresh_tokens(example: Example, before: Example | None) -> int:
    shared = 0 if before is None else _common(before.rows[-1].tokens, example.rows[0].tokens)
    return (
        example.tokens - shared - sum(_common(a.tokens, b.tokens) for a, b in zip(example.rows, example.rows[1:], strict=False))
    )


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    count = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        count += 1
    return count


def _tree(rows: Sequence[Sequence[int]], *, share: bool) -> tuple[list[_Node], list[list[int]]]:
    """The segments, parents before children, and for every row its segments from the root on."""
    nodes: list[_Node] = []
    chains: list[list[int]] = [[] for _ in rows]
    # (rows that share everything up to `begin`, begin, the segment that ends there)
    waiting: deque[tuple[list[int], int, int]] = deque()
    waiting.extend([(list(range(len(rows))), 0, -1)] if share else [([number], 0, -1) for number in range(len(rows))])
    while waiting:
        members, begin, parent = waiting.popleft()
        for cluster in _clusters(rows, members, begin) if len(members) > 1 else [members]:
            first = rows[cluster[0]]
            end = len(first)
            for other in cluster[1:]:
                end = begin + _common(first[begin:end], rows[other][begin:])
            nodes.append(_Node(begin, first[begin:end], parent))
            for number in cluster:
                chains[number].append(len(nodes) - 1)
            rest = [number for number in cluster if len(rows[number]) > end]
            if rest:
                waiting.append((rest, end, len(nodes) - 1))
    return nodes, chains


def _clusters(rows: Sequence[Sequence[int]], members: Iterable[int], begin: int) -> list[list[int]]:
    """Groups of rows whose next tokens agree for long enough to be computed once."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number in members:
        groups.setdefault(tuple(rows[number][begin : begin + _WORTH_SHARING]), []).append(number)
    return list(groups.values())
