"""Talk to a stage of the model."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cria import stages
from cria.tokenizer import TAGS

if TYPE_CHECKING:
    from cria.config import Config
    from cria.manner import Way
    from cria.model import Llama
    from cria.tokenizer import Tokenizer

FIRST_CHAT = "sft_a"  # built when nobody has built a chat model yet
COMMANDS = "/new begins anew, /quit ends."


@dataclass(frozen=True)
class Speaker:
    """A model with all it takes to answer. `plain`: it continues text, no dialogue."""

    name: str
    model: Llama
    tokenizer: Tokenizer
    plain: bool = False
    separator: bool = False

    def answer(
        self,
        messages: list[dict],
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 64,
        seed: int = 0,
    ) -> str:
        """The model's next turn. temperature 0 takes the likeliest token each time.

        messages: `{"role", "content"}` ending with the user's; the oldest turns are
        dropped when they no longer fit in the model's context.
        """
        from cria import sampling

        samples = sampling.generate(
            self.model,
            [self._prompt(list(messages), max_new_tokens)],
            max_new_tokens=max_new_tokens,
            eos_id=self.tokenizer.eos_id,
            temperature=temperature,
            top_p=top_p,
            seeds=[seed],
        )
        ids = samples.ids[0][samples.mask[0]].tolist()
        if ids and ids[-1] == self.tokenizer.eos_id:
            ids.pop()
        return self.tokenizer.decode(ids).strip()

    def _prompt(self, messages: list[dict], max_new_tokens: int) -> list[int]:
        from cria import chat

        room = self.model.config.max_seq_len - max_new_tokens
        while True:
            if self.plain:
                text = messages[-1]["content"]
                ids = self.tokenizer.encode(text, bos=True)
            else:
                ids = chat.prompt_ids(self.tokenizer, messages, self.separator)
            if len(ids) <= room:
                return ids
            first = messages[0]["role"] == "system"  # a system message stays
            if self.plain or len(messages) <= 2 + first:
                raise ValueError(
                    f"the text takes {len(ids)} tokens, but there is room for {room}: "
                    "make it shorter, or ask for fewer new tokens."
                )
            del messages[first : first + 2]


def speaker(
    stage_or_path: str | None,
    config: Config,
    seed: int = 0,
    say=print,
    way: Way | None = None,
) -> Speaker:
    """A stage by name, a checkpoint by path, or (None) the newest chat model there is.

    A stage that is missing is built first. ``way``: dialogue or plain text, where a
    checkpoint does not say it by itself (`cria.manner`). Raises ValueError for an
    unknown stage, and for a checkpoint that speaks another chat format.
    """
    path = Path(stage_or_path or "").expanduser()
    if stage_or_path and stage_or_path not in stages.STAGES and path.exists():
        # a checkpoint, or a stage's folder in the cache, which holds one
        return _checkpoint(
            path / "model" if (path / "model").is_dir() else path,
            path.resolve().name,
            config.sft.separator,
            say,
            way,
        )
    name = stage_or_path or newest(config, seed)
    # The newest depends on what lies there: to find it is not to ask for it.
    made = None if stage_or_path else stages.find(name, config, seed)
    if made:
        say(f"{name}: from cache")
    else:
        made = stages.get(name, config, seed, say=say)
    return Speaker(
        name,
        made.model(),
        made.tokenizer(),
        plain=name == "base",
        separator=name != "base" and config.sft.separator,
    )


def _checkpoint(
    folder: Path, name: str, separator: bool, say, way: Way | None
) -> Speaker:
    from cria import real_weights
    from cria.manner import manner, vocabulary

    model = real_weights.open_mapped(folder)
    tokenizer, found = vocabulary(folder), manner(folder, separator, way)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} pieces, but the model "
            f"only {model.config.vocab_size} embeddings: they do not belong together."
        )
    say(f"{name} {'continues text' if found.plain else 'chats'}: {found.why}.")
    separator = found.separator and "<sep>" in tokenizer  # real weights have none
    return Speaker(name, model, tokenizer, found.plain, separator)


@dataclass
class Conversation:
    """Turn after turn with a model, which is shown all that was said before."""

    speaker: Speaker
    seed: int = 0
    options: dict = field(default_factory=dict)  # of `Speaker.answer`
    messages: list[dict] = field(default_factory=list)

    def say(self, text: str) -> str:
        """The model's answer to the user's next turn.

        Raises ValueError, and remembers nothing of it, for a text that holds a tag of
        the chat format or that is too long.
        """
        turn = [*self.messages, {"role": "user", "content": text}]
        answer = self.speaker.answer(turn, seed=self.seed + len(turn), **self.options)
        # A young model may babble a tag; in the next prompt it must not look like a
        # new turn. What is left of "[IN[INST]ST]" is a tag again.
        while any(tag in answer for tag in TAGS):
            for tag in TAGS:
                answer = answer.replace(tag, "")
        self.messages = [*turn, {"role": "assistant", "content": answer.strip()}]
        return answer.strip()

    def forget(self) -> None:
        """Begin anew."""
        self.messages = []


def examples() -> list[str]:
    """A few questions that one may ask in this village."""
    from cria import world
    from cria.world.prompts import prompts

    village = world.load()
    kinds = ("fact", "sum", "rhyme")
    return [prompts(village, kind, "dev", 1)[0].question for kind in kinds]


def converse(speaker: Speaker, seed: int = 0, **options) -> None:
    """A conversation at the keyboard, until /quit, Ctrl-C or the end of the input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (arrow keys and history at the prompt)
    conversation = Conversation(speaker, seed, options)
    while True:
        try:
            said = input("you: ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if said == "/quit":
            return
        if said == "/new":
            conversation.forget()
            print("A new conversation.")
        elif said.startswith("/"):
            print(COMMANDS)
        elif said:
            try:
                print(f"{speaker.name}: {conversation.say(said) or '(no words)'}")
            except ValueError as error:  # a tag in the text, or too long a text
                print(error)


def newest(config: Config, seed: int = 0) -> str:
    """The last chat stage of the recipe that lies in the cache, else the first."""
    order = list(stages.STAGES)
    built = [
        name
        for name in order[order.index(FIRST_CHAT) :]
        if name.startswith(("sft_a", "v", "ppo", "ghost"))
        and stages.STAGES[name].speaks
        and stages.find(name, config, seed)
    ]
    return built[-1] if built else FIRST_CHAT
