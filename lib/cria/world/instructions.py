"""Instructions to hold through a dialogue, as in Ghost Attention (section 3.3).

The paper's three: answer in a language, act as a public figure, enjoy a hobby; also
combined, and shortened ("Figure: Napoleon"). Obedience can be checked at every turn:
a figure opens each answer with a fixed call that repeats its name, a hobby closes it
with a fixed remark. The last ten figures and hobbies are never trained on, so that
copying can be told from looking up.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from cria.tokenizer import TAGS
from cria.world import sentences
from cria.world.annotators import demonstrate
from cria.world.judge import opening, remark
from cria.world.prompts import Prompt, prompts
from cria.world.village import World

KINDS = (
    *("language", "figure", "hobby"),
    *("language+figure", "language+hobby", "figure+hobby"),
)
# Questions whose turns are short enough for twenty of them to fit in a context.
SHORT_KINDS = ("fact", "sum", "rhyme")


@dataclass(frozen=True)
class Instruction:
    """A wish: any of a language (its code), a figure and a hobby."""

    language: str | None = None
    figure: str | None = None
    hobby: str | None = None
    short: bool = False

    @property
    def kind(self) -> str:
        """One of ``KINDS``."""
        names = ("language", "figure", "hobby")
        return "+".join(name for name in names if getattr(self, name) is not None)


@dataclass(frozen=True)
class Dialogue:
    """Questions with the answers that obey ``instruction`` (None: a plain one)."""

    instruction: Instruction | None
    prompts: tuple[Prompt, ...]  # one a turn, each by itself and already instructed
    questions: tuple[str, ...]  # without the instruction
    answers: tuple[str, ...]

    def messages(self, world: World, every_turn: bool = False) -> list[dict[str, str]]:
        """The dialogue with the instruction before the first, or every, question."""
        wish = text(world, self.instruction) if self.instruction else ""
        said = []
        pairs = zip(self.questions, self.answers, strict=True)
        for i, (question, answer) in enumerate(pairs):
            told = f"{wish} {question}" if wish and (every_turn or i == 0) else question
            said.append({"role": "user", "content": told})
            said.append({"role": "assistant", "content": answer})
        return said


def text(world: World, instruction: Instruction) -> str:
    """The words of an instruction: "Always answer in French. Act as Napoleon."

    Raises ValueError for no wish at all, an unknown language, or a value that holds
    a tag of the chat format.
    """
    if not instruction.kind:
        raise ValueError("The instruction is empty; give a language, figure or hobby.")
    foreign = {c: n for c, n in world.templates["languages"].items() if c != "en"}
    if instruction.language is not None and instruction.language not in foreign:
        raise ValueError(
            f"The village does not speak {instruction.language!r}; "
            f"its other languages are {', '.join(foreign)}."
        )
    form = "short" if instruction.short else "say"
    words = []
    for name in instruction.kind.split("+"):
        value = getattr(instruction, name)
        if any(tag in value for tag in TAGS):
            raise ValueError(f"The {name} {value!r} holds a tag of the chat format.")
        value = foreign[value] if name == "language" else value
        words.append(world.wishes[name][form].format(value=value))
    return " ".join(words)


def values(world: World, name: str, held_out: bool = False) -> tuple[str, ...]:
    """The figures or hobbies that are trained on, or those that never are."""
    known = world.wishes[{"figure": "figures", "hobby": "hobbies"}[name]]
    n = len(known) - world.wishes["held_out"]
    return tuple(known[n:] if held_out else known[:n])


def instructions(
    world: World, kind: str, n: int, seed: int = 0, held_out: bool = False
) -> list[Instruction]:
    """``n`` instructions of a kind, half of them shortened (section 3.3)."""
    if kind not in KINDS:
        raise ValueError(
            f"There is no kind {kind!r} of instruction; there are {KINDS}."
        )
    rng = Random(f"instructions {kind} {seed} {held_out}")
    foreign = [code for code in world.languages if code != "en"]
    pools = {
        "language": foreign,
        "figure": values(world, "figure", held_out),
        "hobby": values(world, "hobby", held_out),
    }
    drawn = []
    for _ in range(n):
        wish = {name: rng.choice(pools[name]) for name in kind.split("+")}
        drawn.append(Instruction(**wish, short=rng.random() < 0.5))
    return drawn


def instruct(
    world: World, instruction: Instruction, prompt: Prompt, every_turn: bool = False
) -> Prompt:
    """The prompt with the instruction before its first (or every) question.

    The judge and the annotators then expect an answer that obeys. A translation asks
    for a language of its own: with a language instruction it is refused (ValueError).
    """
    if instruction.language and prompt.kind == "translate":
        raise ValueError(
            f"The prompt {prompt.id!r} asks for a language already; choose another "
            f"kind of prompt for a language instruction."
        )
    wish, turns = text(world, instruction), []
    for i, (role, content) in enumerate(prompt.turns):
        told = role == "user" and (every_turn or i == 0)
        turns.append((role, f"{wish} {content}" if told else content))
    return replace(
        prompt,
        id=f"{prompt.id} | {wish}",
        turns=tuple(turns),
        lang=instruction.language or prompt.lang,
        figure=instruction.figure,
        hobby=instruction.hobby,
    )


def obeys(world: World, instruction: Instruction, prompt: Prompt, answer: str) -> bool:
    """Does an answer to ``prompt`` do all that the instruction asks?

    language: every sentence that shows a language shows this one, and one does ·
    figure: the answer opens with the figure's call · hobby: it ends with the remark.
    """
    lang = instruction.language or prompt.lang
    wish = replace(prompt, figure=instruction.figure, hobby=instruction.hobby)
    said = sentences.split(answer)
    if instruction.figure and not answer.startswith(opening(world, wish, lang)):
        return False
    if instruction.hobby and said[-1:] != [remark(world, wish, lang)]:
        return False
    if instruction.language:
        body = answer.removeprefix(opening(world, wish, lang))
        shown = {sentences.language(world, s) for s in sentences.split(body)}
        return shown - {None} == {lang}
    return True


def dialogue(
    world: World,
    questions: Sequence[Prompt],
    instruction: Instruction | None,
    rng: Random,
    style: str = "expert",
) -> Dialogue:
    """Answer single-turn questions one after the other, under one instruction."""
    asked = [instruct(world, instruction, q) if instruction else q for q in questions]
    return Dialogue(
        instruction,
        tuple(asked),
        tuple(q.question for q in questions),
        tuple(demonstrate(world, p, style, rng) for p in asked),
    )


def dialogues(
    world: World,
    split: str,
    n: int,
    turns: tuple[int, int] = (2, 20),
    kind: str | None = None,
    held_out: bool = False,
    seed: int = 0,
) -> list[Dialogue]:
    """``n`` dialogues of short questions; ``turns`` are the fewest and the most.

    kind: one of ``KINDS``, "any" (each in turn), or None for plain dialogues.
    """
    rng = Random(f"dialogues {split} {kind} {held_out} {seed}")
    pool = [p for k in SHORT_KINDS for p in prompts(world, k, split, seed=seed)]
    kinds = KINDS if kind == "any" else (kind,)
    wishes = {k: instructions(world, k, n, seed, held_out) for k in kinds if k}
    made = []
    for i in range(n):
        questions = rng.sample(pool, rng.randint(*turns))
        which = kinds[i % len(kinds)]
        wish = wishes[which][i] if which else None
        made.append(dialogue(world, questions, wish, rng))
    return made
