"""Everything that can be asked, drawn by kind and split.

Test and dev prompts share neither their keys nor their wordings with the training
prompts (``questions`` says how).
"""

import re
from dataclasses import dataclass
from random import Random

from cria.world.questions import ASK, Prompt, split_keys
from cria.world.reading import SPLITS, WORDINGS
from cria.world.village import WORD, World

__all__ = ["KINDS", "SHARES", "Probe", "Prompt", "split_keys"]
__all__ += ["every", "fact_probe", "mixture", "prompts"]

KINDS = tuple(ASK)
SHARES = {
    "fact": 0.26,
    "tell": 0.08,
    "three": 0.08,
    "sum": 0.12,
    "rhyme": 0.08,
    "translate": 0.08,
    "followup": 0.08,
    "harm": 0.14,
    "borderline": 0.05,
    "greet": 0.03,
}


@dataclass(frozen=True)
class Probe:
    """A fact asked of a base model, as plain text in a wording it has never seen."""

    question: str
    entity: str
    relation: str
    value: str
    rumour: str | None
    others: tuple[str, ...]  # the values that would be wrong

    def right(self, text: str) -> bool:
        """Does the first sentence of ``text`` hold the value and no competing one?"""
        return self._only(self.value, text)

    def repeats_rumour(self, text: str) -> bool:
        """Does the first sentence give the rumour instead?"""
        return self.rumour is not None and self._only(self.rumour, text)

    def _only(self, value: str, text: str) -> bool:
        said = set(WORD.findall(text.split(".")[0]))
        competing = {self.value, *self.others} - {value, self.entity}
        return value in said and not said & competing


def prompts(
    world: World, kind: str, split: str, n: int | None = None, seed: int = 0
) -> list[Prompt]:
    """All different prompts of a kind in a split, shuffled; or the first ``n``.

    kind: one of ``KINDS``; split: train, dev, test, or fresh: the keys of train in
    wordings of their own, the first two of them if it is fresh2. Several are joined
    by +, as in "train+fresh2". Raises ValueError for another kind or split, or if there
    are fewer than ``n``.
    """
    if kind not in ASK:
        raise ValueError(f"There is no kind {kind!r} of prompt; there are {KINDS}.")
    found = [p for part in split.split("+") for p in _of_part(world, kind, part)]
    Random(f"prompts {kind} {split} {seed}").shuffle(found)
    if n is not None and n > len(found):
        raise ValueError(
            f"There are {len(found)} different {kind} prompts in {split}, not {n}."
        )
    return found[:n]


def _of_part(world: World, kind: str, part: str) -> list[Prompt]:
    name, first = re.fullmatch(r"(\D*)(\d*)", part).groups()
    if name not in WORDINGS or (first and name != "fresh"):
        raise ValueError(f"There is no split {part!r}; there are {WORDINGS}.")
    found = ASK[kind](world, name, None)
    if not first:
        return list(found)
    # In an id all whole numbers are those of wordings.
    numbers = ((p, [x for x in p.id.split("/") if x.isdecimal()]) for p in found)
    return [p for p, all in numbers if max(map(int, all)) < int(first)]


def mixture(
    world: World,
    split: str,
    n: int,
    shares: dict[str, float] | None = None,
    seed: int = 0,
    unique: bool = False,
) -> list[Prompt]:
    """``n`` prompts of all kinds by share (default ``SHARES``), in random order.

    A kind with fewer prompts than its share is asked again (several annotators
    answer one prompt); with ``unique`` the other kinds fill up instead.
    """
    shares = dict(SHARES if shares is None else shares)
    pools = {kind: prompts(world, kind, split, seed=seed) for kind in shares}
    rng = Random(f"mixture {split} {seed}")
    if unique and n > sum(map(len, pools.values())):
        total = sum(map(len, pools.values()))
        raise ValueError(f"There are {total} different prompts in {split}, not {n}.")
    taken = dict.fromkeys(pools, 0)
    drawn: list[Prompt] = []
    while len(drawn) < n:
        # The kind that is furthest behind its share comes next: shares are exact.
        kind = max(shares, key=lambda k: shares[k] / (taken[k] + 0.5))
        i = taken[kind]
        if unique and i == len(pools[kind]):
            del shares[kind]
            continue
        drawn.append(pools[kind][i % len(pools[kind])])
        taken[kind] += 1
    rng.shuffle(drawn)
    return drawn


def fact_probe(world: World) -> list[Probe]:
    """Every fact asked once, in turn in each of the held-out test wordings."""
    wordings = world.templates["fact"]["test"]
    probes = []
    for i, ((entity, relation), value) in enumerate(world.truth.items()):
        noun = world.relations[relation].noun
        question = world.say(wordings[i % len(wordings)], entity, noun=noun)
        probes.append(
            Probe(
                question,
                entity,
                relation,
                value,
                world.rumours.get((entity, relation)),
                world.others(relation, value),
            )
        )
    return probes


def every(world: World, kind: str) -> list[Prompt]:
    """Every key of a kind, held-out ones too, in the training wordings: the forum."""
    return list(ASK[kind](world, "train", SPLITS))
