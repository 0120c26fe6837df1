"""Which items become questions, and with which wrong options: by shares, by turns and by the seed alone."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pathor1.curation.diagnoses import excludes, key
from pathor1.curation.reserve import share
from pathor1.samples import LETTERS

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An item that a question can be made of. text: caption and references, which no wrong option may stand in."""

    id: str
    image_sha256: str
    subfield: str
    system: str
    diagnosis: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question on an item. answer: a letter."""

    item: Candidate
    options: tuple[str, ...]
    answer: str


def largest_remainder(weights: Mapping[K, float], total: int, most: Mapping[K, int]) -> dict[K, int]:
    """`total` in whole numbers by the weights, no more than `most` of each; what does not fit goes to the others.

    Each gets the whole part of its share, and those with the largest remainders one more. The sum is less than `total`
    only where all are at their most. Example: ({"a": 6, "b": 3, "c": 1}, 5, ...) -> {"a": 3, "b": 2, "c": 0}.
    """
    given: dict[K, int] = dict.fromkeys(weights, 0)
    open_ = {name for name, weight in weights.items() if weight > 0 and most[name] > 0}
    left = total
    while left and open_:
        sum_ = sum(weights[name] for name in open_)
        quotas = {name: left * weights[name] / sum_ for name in open_}
        full = {name for name in open_ if given[name] + quotas[name] >= most[name]}
        if full:  # they take what they can, and the rest is shared anew
            for name in full:
                left -= most[name] - given[name]
                given[name] = most[name]
            open_ -= full
            continue
        for name in open_:
            given[name] += int(quotas[name])
        left -= sum(int(quota) for quota in quotas.values())
        order = sorted(open_, key=lambda name: (-(quotas[name] % 1), str(name)))
        for name in order[:left]:
            given[name] += 1
        left = 0
    return given


def choose(
    candidates: Sequence[Candidate],
    count: int,
    *,
    subfields: Mapping[str, int],
    by_system: Sequence[str],
    seed: int,
) -> list[Candidate]:
    """`count` candidates, or all that there are: by the shares of subfields, in some of them by those of systems too.

    subfields: how many items of each there are in all, which the shares are of. A picture comes once.
    """
    unique = {each.image_sha256: each for each in sorted(candidates, key=lambda each: each.id, reverse=True)}
    strata: defaultdict[tuple[str, str], list[Candidate]] = defaultdict(list)
    for each in unique.values():
        strata[each.subfield, each.system if each.subfield in by_system else ""].append(each)
    there: Counter[str] = Counter()
    for (subfield, _), items in strata.items():
        there[subfield] += len(items)
    shares = largest_remainder({name: subfields.get(name, 0) for name in there}, count, there)
    chosen: list[Candidate] = []
    for subfield, number in sorted(shares.items()):
        sizes = {stratum: len(items) for stratum, items in strata.items() if stratum[0] == subfield}
        for stratum, wanted in largest_remainder(sizes, number, sizes).items():
            chosen += sorted(strata[stratum], key=lambda each: share(seed, "chosen", each.id))[:wanted]
    return sorted(chosen, key=lambda each: (share(seed, "order", each.id), each.id))


class Pool:
    """The items whose diagnoses are wrong options of others: by subfield, and by tissue system within it."""

    def __init__(self, items: Iterable[Candidate]) -> None:
        self._of: defaultdict[tuple[str, str | None], list[Candidate]] = defaultdict(list)
        for each in sorted(items, key=lambda each: each.id):
            self._of[each.subfield, each.system].append(each)
            self._of[each.subfield, None].append(each)

    def wrong(self, item: Candidate, count: int, *, seed: int) -> list[str] | None:
        """`count` wrong diagnoses for an item, of its subfield and, as far as there are, of its tissue system.

        They are drawn from the other items and not from a list of diagnoses: one comes as often as it is right
        elsewhere, so that who does not see the picture gains nothing by the commonest. None where there are not enough.
        """
        rng = random.Random(f"{seed}/{item.id}")
        told = key(item.text)
        found: list[str] = []
        for system in (item.system, None):
            for other in _drawn(self._of[item.subfield, system], rng):
                words = key(other.diagnosis)
                mentioned = any(told[at : at + len(words)] == words for at in range(len(told) - len(words) + 1))
                if not mentioned and all(excludes(other.diagnosis, one) for one in (item.diagnosis, *found)):
                    found.append(other.diagnosis)
                    if len(found) == count:
                        return found
        return None


def _drawn(items: Sequence[Candidate], rng: random.Random) -> Iterator[Candidate]:
    """All items in an order by chance, of which mostly the first few are needed: no list of all is shuffled."""
    moved: dict[int, int] = {}
    for place in range(len(items)):
        other = rng.randrange(place, len(items))
        yield items[moved.get(other, other)]
        moved[other] = moved.get(place, place)


def ask(chosen: Sequence[Candidate], pool: Iterable[Candidate], *, options: int, seed: int) -> list[Asked]:
    """A question on each item for which there are wrong options enough; each letter is right equally often.

    The letters go round in the order of the items, which the seed has shuffled: their counts differ by one at most.
    """
    others = Pool(pool)
    asked: list[Asked] = []
    for item in chosen:
        wrong = others.wrong(item, options - 1, seed=seed)
        if wrong is None:
            continue
        place = len(asked) % options
        shown = sorted(wrong, key=lambda one: share(seed, "place", item.id, one))
        shown.insert(place, item.diagnosis)
        asked.append(Asked(item=item, options=tuple(shown), answer=LETTERS[place]))
    return asked
