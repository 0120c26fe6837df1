"""How fast a server may be asked, and what that costs."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from pathor1.curation.recipe_samples import Reason
from pathor1.errors import RunError

# English prose has some four characters a token; what the server counts takes its place as soon as it has answered.
CHARACTERS_A_TOKEN = 4.0
MINUTE = 60.0


@dataclass
class Rate:
    """A token bucket: `per_minute` units a minute, which may be taken in bursts of a tenth of that. None = no limit.

    What turns out to cost more than was taken is paid back by whoever comes next.
    """

    per_minute: float | None
    _there: float = field(init=False)
    _at: float = field(init=False)
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._there = self._most
        self._at = time.monotonic()

    @property
    def _most(self) -> float:
        return max(1.0, (self.per_minute or 0.0) / 10)

    def take(self, amount: float = 1.0) -> None:
        """Takes `amount`, by which the bucket may come into debt, and waits until the debt before it is paid."""
        if self.per_minute is None:
            return
        with self._lock:
            now = time.monotonic()
            self._there = min(self._most, self._there + (now - self._at) * self.per_minute / MINUTE)
            self._at = now
            wait = max(0.0, -self._there) * MINUTE / self.per_minute  # until those before are paid for
            self._there -= amount
        time.sleep(wait)

    def correct(self, amount: float) -> None:
        """Takes `amount` more, or gives it back where it is negative, without waiting."""
        if self.per_minute is not None:
            with self._lock:
                self._there -= amount


@dataclass
class Cost:
    """Tokens and money: what has been spent, and what all will come to. `replies`: how many there are."""

    settings: Reason
    replies: int = 0
    tokens_in: int = 0
    tokens_out: int = 0

    def add(self, *, tokens_in: int, tokens_out: int) -> None:
        """Counts a reply."""
        self.replies += 1
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out

    @property
    def money(self) -> float:
        """What has been spent, in the recipe's currency."""
        return self.price(self.tokens_in, self.tokens_out)

    def price(self, tokens_in: float, tokens_out: float) -> float:
        """What so many tokens cost."""
        return (tokens_in * self.settings.input_price + tokens_out * self.settings.output_price) / 1e6

    def expected(self, requests: int, characters: int) -> float:
        """What `requests` with so many characters of prompts will cost: by the replies so far, else by a guess."""
        if self.replies:
            return self.money * requests / self.replies
        return self.price(characters / CHARACTERS_A_TOKEN, requests * self.settings.expected_tokens)

    def check(self, expected: float = 0.0) -> None:
        """Raises RunError where what has been spent, with what is expected, is above the budget."""
        budget, currency = self.settings.budget, self.settings.currency
        if budget is None:
            return
        if expected and self.money + expected > budget:
            raise RunError(
                f"it is expected to cost {self.money + expected:.2f} {currency}, and reason.budget is {budget:.2f}; "
                "raise it, or write fewer samples (reason.samples)"
            )
        if self.money >= budget:
            raise RunError(
                f"{self.money:.2f} {currency} have been spent, and reason.budget is {budget:.2f}; what was written is "
                "kept, and the same command with a higher budget goes on"
            )

    def __str__(self) -> str:
        tokens = f"{self.tokens_in:,} tokens in, {self.tokens_out:,} out"
        return f"{tokens}, {self.money:.2f} {self.settings.currency}" if self.money else tokens
