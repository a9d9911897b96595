"""What the tokens of a call cost, in nano-dollars: decimal arithmetic, rounded once a call, so that a million calls add up.

It knows the price list and no vendor's own; who pays, and whether they may, is `app.models.costs`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_HALF_UP, Decimal
from typing import Final, Self

from app.core.settings import Price
from app.core.types import Usage

_PER_TOKEN: Final = Decimal(1000)
"""Nano-dollars a token for one dollar a million tokens."""
_NAMES: Final = 1024


@dataclass(frozen=True, slots=True)
class Rates:
    """Nano-dollars a token, exactly as the price list has them."""

    input: Decimal
    output: Decimal
    cached_input: Decimal
    cache_write: Decimal

    @classmethod
    def of(cls, price: Price) -> Self:
        """The rates of a price in dollars a million tokens. ``str`` first: a float's shortest form is what was written."""
        plain = Decimal(str(price.input)) * _PER_TOKEN
        return cls(
            input=plain,
            output=Decimal(str(price.output)) * _PER_TOKEN,
            cached_input=plain if price.cached_input is None else Decimal(str(price.cached_input)) * _PER_TOKEN,
            cache_write=plain if price.cache_write is None else Decimal(str(price.cache_write)) * _PER_TOKEN,
        )

    def cost(self, usage: Usage) -> int:
        """Nano-dollars for what was used, rounded once, half up."""
        plain = max(usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens, 0)
        exact = (
            self.input * plain
            + self.cached_input * usage.cached_tokens
            + self.cache_write * usage.cache_write_tokens
            + self.output * usage.completion_tokens
        )
        return int(exact.to_integral_value(ROUND_HALF_UP))

    def most(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Nano-dollars that no call of that size exceeds."""
        exact = max(self.input, self.cached_input, self.cache_write) * prompt_tokens + self.output * completion_tokens
        return int(exact.to_integral_value(ROUND_CEILING))


class Prices:
    """The price list: an exact name before patterns, the pattern with the most letters of its own before others."""

    def __init__(self, table: Mapping[str, Price]) -> None:
        ordered = sorted(table, key=lambda pattern: ("*" not in pattern, len(pattern.replace("*", "")), pattern), reverse=True)
        self._rates = [(pattern, Rates.of(table[pattern])) for pattern in ordered]
        self._found: dict[str, Rates | None] = {}

    def of(self, model: str) -> Rates | None:
        """The rates of ``provider/name``, or None where the list says nothing of it."""
        if not self._rates:
            return None
        if model in self._found:
            return self._found[model]
        found = next((rates for pattern, rates in self._rates if matches(pattern, model)), None)
        if len(self._found) < _NAMES:  # where an upstream takes any name, callers choose them
            self._found[model] = found
        return found


def matches(pattern: str, name: str) -> bool:
    """Whether ``name`` is ``pattern``, in which each ``*`` stands for any text. Time is linear in both."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    last = rest.pop()
    if not name.startswith(first) or not name.endswith(last) or len(name) < len(first) + len(last):
        return False
    at, end = len(first), len(name) - len(last)
    for part in rest:
        found = name.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
