"""The stages v1 … v4: one round of rejection sampling each, killed and gone on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from cria import checkpoints, preferences, reward, world
from cria.preferences import Comparison, collect
from cria.provenance import write_json
from cria.rejection import (
    best_temperature,
    fine_tune,
    gain_of_best,
    refresh,
    rescore,
    sample,
)
from cria.reward_data import comparisons
from cria.selection import balanced, best, ended, read_pool, write_pool
from cria.world import corpora
from cria.world.prompts import mixture

GROUNDS = ("helpfulness", "safety")


def build(config, seed: int, upstream: Mapping, out: Path, round: int) -> dict:
    """Stage `v1` … `v4`: model/, the refreshed rm_helpfulness/ and rm_safety/,
    pool.json (the best answers of every round so far) and fresh.jsonl."""
    village, c, gate = world.load(), config.rejection, config.ppo.safety_gate
    vocabulary = upstream["sft_a"].tokenizer()
    seed_of_round = 1000 * seed + round
    old = comparisons(upstream["preferences"].path)["train"]
    if round == 1:
        model, pool = upstream["sft_a"].model(), []
        rms = tuple(
            reward.load(upstream[f"rm_{x}"].path) for x in ("helpful", "safety")
        )
        earlier: list[Comparison] = []
    else:
        before = upstream[f"v{round - 1}"]
        model, pool = before.model(), read_pool(before.path / "pool.json")
        rms = tuple(reward.load(before.path / f"rm_{ground}") for ground in GROUNDS)
        earlier = preferences.load(before.path / "fresh.jsonl").comparisons
    split = c.wordings[round - 1]
    asked = mixture(
        village, split, c.prompts, dict(c.kinds), seed_of_round, unique=True
    )

    safety = int(c.refresh_pairs * config.preferences.safety_share)
    counts = {"helpfulness": c.refresh_pairs - safety, "safety": safety}

    def learn_from(newest, out: Path, seed: int) -> dict[str, list[Comparison]]:
        """Fresh comparisons of the newest model's answers; both RMs learn them."""
        fresh = {
            ground: collect(
                village,
                [newest],
                vocabulary,
                ground,
                n,
                config.preferences,
                split=split,
                seed=100 + seed,
            ).comparisons
            for ground, n in counts.items()
        }
        known = {g: [*old[g], *(x for x in earlier if x.ground == g)] for g in GROUNDS}
        lr = c.refresh_lr
        refresh(rms, fresh, known, vocabulary, config.reward, lr=lr, seed=seed, out=out)
        return fresh

    if round == 1:  # to the first reward models, too, its wordings are new
        seen = learn_from(model, out / "before", 1000 * seed)
        earlier = [*seen[GROUNDS[0]], *seen[GROUNDS[1]]]

    def measured() -> list:
        few = asked[: c.temperature_prompts]
        found = best_temperature(
            model, rms, vocabulary, few, c, gate=gate, seed=seed_of_round
        )
        return [found[0], list(found[1].items())]

    temperature, curve = _once(out / "temperature.json", measured)
    new = sample(
        model,
        rms,
        vocabulary,
        asked,
        c,
        round=round,
        temperature=temperature,
        gate=gate,
        seed=100 * seed_of_round,
        out=out,
    )
    if c.pool == "previous":
        pool = []
    known = rescore(pool, rms, vocabulary, gate) if pool else []
    chosen = best(ended([*known, *new], vocabulary.eos_id))
    lessons = balanced(chosen, c.kinds)
    n_tokens = sum(len(s.ids) for s in lessons) * c.texts
    texts = (
        corpora.stream(village, dict(c.text_mix), n_tokens, vocabulary, seed_of_round)
        if n_tokens
        else []
    )
    metrics = fine_tune(
        model,
        vocabulary,
        lessons,
        c,
        seed=seed_of_round,
        texts=texts,
        out=out / "training",
        label=f"V{round}",
    )
    checkpoints.save(model, out / "model", vocabulary)
    fresh = learn_from(model, out, seed_of_round)
    for rm, ground in zip(rms, GROUNDS, strict=True):
        reward.save(rm, out / f"rm_{ground}", vocabulary)
    preferences.save(
        [*earlier, *fresh[GROUNDS[0]], *fresh[GROUNDS[1]]], out / "fresh.jsonl"
    )
    write_pool([*pool, *best(ended(new, vocabulary.eos_id))], out / "pool.json")
    for unfinished in out.rglob("training.safetensors"):
        unfinished.unlink()  # only a run that stopped needs it
    for part in out.glob("samples-*.json"):
        part.unlink()
    return {
        "temperature": temperature,
        "temperature_curve": curve,
        "samples": len(new),
        "ended": sum(s.ids[-1] == vocabulary.eos_id for s in new) / len(new),
        "score": sum(s.score for s in new) / len(new),
        "gain_of_best": gain_of_best(new, c.samples),
        "chosen": len(chosen),
        "lessons": len(lessons),
        "chosen_by_round": [
            sum(s.round == r for s in chosen) for r in range(1, round + 1)
        ],
        "fresh": {g: len(x) for g, x in fresh.items()},
        "loss": metrics[-1]["loss"],
    }


def _once(path: Path, work: Callable[[], object]) -> object:
    """What ``work`` gave, kept as JSON: a round that goes on does not do it again."""
    if not path.exists():
        write_json(path, work())
    return json.loads(path.read_text("utf-8"))
