"""Budgets: how much may be spent, by whom, and the `Ledger` that stops a call before any model is asked.

What its subjects have spent within the moving window and what their open calls may still cost must leave room. It keeps no
book of its own: what was spent is read from the stored predictions, so a restart and other processes count. It knows no model
and no vendor, only names and token counts.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal, Protocol, Self

from app.core.errors import BudgetExhausted, StorageUnavailable
from app.core.settings import Costs
from app.core.types import GenerationRequest, Principal, Usage
from app.models.prices import Prices

Subject = Literal["total", "user", "key"]

NANO: Final = 1_000_000_000
"""Nano-dollars in a dollar."""
_WINDOWS_S: Final = {"hour": 3600, "day": 86_400, "month": 30 * 86_400}
_SLICE_BITS: Final = {"hour": 16, "day": 20, "month": 24}
"""A slice of a window as a power of two of milliseconds: 66 seconds, 17 minutes, 4.7 hours; so 55, 83 or 155 of them."""
_REFRESH_S: Final = 30.0
_SHARE: Final = 50.0
"""Where a reading takes long, the next one waits that many times as long."""
_READ_S: Final = 10.0
_ACCOUNTS: Final = 10_000
_SOON_S: Final = 2.0
_ANSWER_TOKENS: Final = 4096
"""What is set aside for an answer whose caller names no limit."""
_IMAGE_TOKENS: Final = 8192
_MESSAGE_TOKENS: Final = 64
_WHOSE: Final[Mapping[Subject, str]] = {
    "total": "The budget of this service",
    "user": "Your budget",
    "key": "The budget of this API key",
}


class SpendStore(Protocol):
    """The stored predictions, as far as they have a price."""

    async def spent(
        self,
        *,
        since_ms: int,
        until_ms: int,
        slice_bits: int,
        user_id: str | None = None,
        key_id: str | None = None,
        without: Collection[str] = (),
    ) -> Sequence[tuple[int, int]]:
        """``(slice, nano-dollars)``, oldest first, over ids of that time; ``slice`` is milliseconds >> ``slice_bits``."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Most nano-dollars of one kind of subject in any window of that length."""

    kind: Subject
    limit: int
    window_s: int
    slice_bits: int
    words: str

    @classmethod
    def of(cls, kind: Subject, text: str) -> Self:
        """A budget as ``2.50/day``; settings have checked its form."""
        amount, _, unit = text.partition("/")
        return cls(kind, int(Decimal(amount) * NANO), _WINDOWS_S[unit], _SLICE_BITS[unit], f"{amount} US dollars a {unit}")


class _Account:
    """One subject's money: what is spent in the window, by slices of time, and what its open calls may still cost."""

    def __init__(self, budget: Budget, subject: str | None) -> None:
        self.budget = budget
        self.held = 0
        self.open: dict[str, int] = {}
        self._subject = subject
        self._slices: OrderedDict[int, int] = OrderedDict()
        self._spent = 0
        self._since_read: list[tuple[int, int]] = []
        self._unstored: dict[int, int] = {}
        """What cost money and stands in no prediction, by slices: no reading brings it back."""
        self._read_at: float | None = None
        self._read_s = 0.0
        self._reading = asyncio.Lock()

    async def bring_up_to_date(self, store: SpendStore, wall_s: Callable[[], float], clock: Callable[[], float]) -> None:
        """Reads what is stored, if that was long ago. Raises StorageUnavailable: what is not known is not spent."""
        if self._fresh(clock):
            return
        async with self._reading:
            if self._fresh(clock):
                return
            at, now_ms = clock(), int(wall_s() * 1000)
            self._since_read.clear()
            kind = self.budget.kind
            # Calls that are open here are left out, whether or not their row is there by now: they count once they settle.
            try:
                async with asyncio.timeout(_READ_S):
                    rows = await store.spent(
                        since_ms=now_ms - self.budget.window_s * 1000,
                        until_ms=now_ms,
                        slice_bits=self.budget.slice_bits,
                        user_id=self._subject if kind == "user" else None,
                        key_id=self._subject if kind == "key" else None,
                        without=tuple(self.open),
                    )
            except TimeoutError:
                raise StorageUnavailable("What was spent cannot be read now. Try again.", retry_after=5) from None
            slices = dict(rows)
            for key, cost in (*self._unstored.items(), *self._since_read):
                slices[key] = slices.get(key, 0) + cost
            self._slices = OrderedDict(sorted(slices.items()))
            self._spent = sum(slices.values())
            self._read_at, self._read_s = at, clock() - at

    def hold(self, prediction_id: str, most: int) -> None:
        """Sets ``most`` aside for a call."""
        self.open[prediction_id] = most
        self.held += most

    def settle(self, prediction_id: str, cost: int, wall_ms: int, *, stored: bool) -> None:
        """The call has ended and cost that much; ``stored``: it stands in its prediction."""
        self.held -= self.open.pop(prediction_id)
        if not cost:
            return
        key = wall_ms >> self.budget.slice_bits
        self._slices[key] = self._slices.get(key, 0) + cost
        self._spent += cost
        if not stored:
            self._unstored[key] = self._unstored.get(key, 0) + cost
        elif self._reading.locked():
            self._since_read.append((key, cost))

    def check(self, now_s: float) -> None:
        """Raises BudgetExhausted where nothing is left."""
        self._drop_aged(now_s)
        if self._spent + self.held < self.budget.limit:
            return
        whose = _WHOSE[self.budget.kind]
        if self._spent < self.budget.limit:
            detail = f"{whose} ({self.budget.words}) is set aside for calls that are still open. Let some of them end first."
            raise BudgetExhausted(detail, retry_after=_SOON_S)
        wait = self._room_in(now_s)
        detail = f"{whose} is spent: {self.budget.words}. It has room again in {_duration(wait)}."
        raise BudgetExhausted(detail, retry_after=wait)

    @property
    def idle(self) -> bool:
        """Whether it can be forgotten: all that it knows is stored."""
        return not self.open and not self._unstored

    def _fresh(self, clock: Callable[[], float]) -> bool:
        return self._read_at is not None and clock() - self._read_at < max(_REFRESH_S, _SHARE * self._read_s)

    def _drop_aged(self, now_s: float) -> None:
        while self._slices and self._aged_at(next(iter(self._slices))) <= now_s:
            self._spent -= self._slices.popitem(last=False)[1]
        for key in [key for key in self._unstored if self._aged_at(key) <= now_s]:
            del self._unstored[key]

    def _aged_at(self, key: int) -> float:
        """Seconds since the epoch at which a whole slice has left the window."""
        return ((key + 1) << self.budget.slice_bits) / 1000 + self.budget.window_s

    def _room_in(self, now_s: float) -> float:
        left = self._spent
        for key, cost in self._slices.items():
            left -= cost
            if left < self.budget.limit:
                return max(self._aged_at(key) - now_s, 1.0)
        return float(self.budget.window_s)  # a budget of nothing never has room


@dataclass(slots=True)
class Hold:
    """Money set aside for one open call. `settle` it exactly once, however the call ends; a second time does nothing."""

    prediction_id: str = ""
    _accounts: Sequence[_Account] = ()
    _wall_s: Callable[[], float] = field(default=time.time, repr=False)
    _settled: bool = False

    def settle(self, cost: int | None, *, stored: bool = True) -> None:
        """Gives back what was set aside and counts what the call has cost; None: it has no price.

        ``stored``: the prediction with that cost is in the store. Where it is not, this process alone remembers.
        """
        if self._settled:
            return
        self._settled = True
        for account in self._accounts:
            account.settle(self.prediction_id, cost or 0, int(self._wall_s() * 1000), stored=stored)


class Ledger:
    """Prices of calls, and budgets of who makes them.

    Args:
        settings: section ``costs``.
        store: where priced predictions are summed.
        wall_s: seconds since the epoch; the windows lie over stored ids, which carry it.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        settings: Costs,
        store: SpendStore,
        *,
        wall_s: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prices = Prices(settings.prices)
        self._budgets = tuple(Budget.of(kind, text) for kind, text in settings.budgets.items())
        self._store = store
        self._wall_s = wall_s
        self._clock = clock
        self._accounts: OrderedDict[tuple[Subject, str | None], _Account] = OrderedDict()

    def cost(self, model: str, usage: Usage) -> int | None:
        """Nano-dollars for ``usage`` of ``model`` (``provider/name``), or None where it has no price."""
        rates = self._prices.of(model)
        return None if rates is None else rates.cost(usage)

    async def admit(self, request: GenerationRequest, principal: Principal, models: Iterable[str], prediction_id: str) -> Hold:
        """Sets aside the most that the dearest of ``models`` could cost for ``request``.

        Asks nothing of anybody where no budget is set, or where none of the models costs anything.

        Raises:
            BudgetExhausted: what is spent and what is set aside fill a budget of this caller; with ``retry_after``.
            StorageUnavailable: what was spent cannot be read.
        """
        if not self._budgets:
            return Hold()
        rates = [found for model in models if (found := self._prices.of(model)) is not None]
        if not any(each.most(1, 1) for each in rates):
            return Hold()
        prompt, answer = most_tokens(request), request.sampling.max_tokens
        most = max(each.most(prompt, _ANSWER_TOKENS if answer is None else answer) for each in rates)
        accounts = [self._account(budget, subject) for budget in self._budgets for subject in _subjects(budget, principal)]
        for account in accounts:
            await account.bring_up_to_date(self._store, self._wall_s, self._clock)
        # From the first check to the last hold there is no suspension: of many at once, each sees those before it.
        now_s = self._wall_s()
        for account in accounts:
            account.check(now_s)
        for account in accounts:
            account.hold(prediction_id, most)
        return Hold(prediction_id, accounts, self._wall_s)

    def _account(self, budget: Budget, subject: str | None) -> _Account:
        key = (budget.kind, subject)
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = _Account(budget, subject)
            self._forget_idle()
        self._accounts.move_to_end(key)
        return account

    def _forget_idle(self) -> None:
        """Bounds memory: who was silent longest goes first; what is stored is read again. Open calls keep their account."""
        if len(self._accounts) > _ACCOUNTS:
            idle = next((key for key, account in self._accounts.items() if account.idle), None)
            if idle is not None:
                del self._accounts[idle]


def most_tokens(request: GenerationRequest) -> int:
    """An upper bound for the prompt's tokens without a tokenizer: a token of text is a byte at least.

    An image counts as 8,192, more than the vendors' usual: its bytes say nothing of its tokens.
    """
    tools = sum(_bytes(tool) for tool in request.sampling.tools)
    schema = 0 if request.sampling.response_format is None else _bytes(request.sampling.response_format)
    return tools + schema + sum(_bytes(message.to_wire()) + _MESSAGE_TOKENS for message in request.messages)


def _bytes(value: Any) -> int:
    match value:
        case str():
            return len(value.encode("utf-8", "surrogatepass"))
        case Mapping() if value.get("type") in ("image_url", "image", "input_image"):
            return _IMAGE_TOKENS
        case Mapping():
            return sum(_bytes(key) + _bytes(each) for key, each in value.items())
        case list() | tuple():
            return sum(_bytes(each) for each in value)
        case _:
            return 8


def _subjects(budget: Budget, principal: Principal) -> Sequence[str | None]:
    if budget.kind == "user":
        return (principal.user_id,)
    if budget.kind == "key":
        return () if principal.key_id is None else (principal.key_id,)
    return (None,)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    if seconds < 7200:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
