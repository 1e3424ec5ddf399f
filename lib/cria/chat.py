"""A dialogue becomes ids and a loss mask, in Llama 2-Chat's exact layout.

One finished pair of turns is

    <s>[INST] {user} [/INST] {answer} </s>

and a dialogue is such pairs one after the other, each encoded by itself. A last user
turn without an answer ends at [/INST]: there the model continues. A system message
is merged into the first user turn:

    <s>[INST] <<SYS>>
    {system}
    <</SYS>>

    {user} [/INST] …

Source: the chat format that Meta released with the models (llama/generation.py);
loss on answer tokens only: section 3.1 of the paper. The mask is built from the
segments, never by looking for a tag in the text, and text that holds a tag is
refused: otherwise a user could speak with the system's or the assistant's voice.
"""

from collections.abc import Mapping, Sequence

from cria.tokenizer import TAGS, Tokenizer

Messages = Sequence[Mapping[str, str]]


def encode_dialog(
    tokenizer: Tokenizer, messages: Messages, separator: bool = False
) -> tuple[list[int], list[bool]]:
    """The ids of a dialogue and, for each id, whether the loss counts it.

    messages: `{"role": "system"|"user"|"assistant", "content": text}` in the order
        [system,] user, assistant, user, … Space around a turn is stripped.
    separator: put the special piece <sep> between each prompt and its answer. The
        paper does so in SFT (section 3.1); the released chat format does not.

    Returns (ids, loss_mask), equally long. The mask is True exactly on the tokens of
    every answer, the space after it, and its EOS. A last user turn without an answer
    gives a prompt to continue: no EOS, nothing to learn.

    Raises ValueError for wrong roles or order, a tag inside a text, or a separator
    that the vocabulary does not have.
    """
    ids: list[int] = []
    loss_mask: list[bool] = []
    for user, answer in _pairs(messages):
        prompt, target = _segments(tokenizer, user, answer)
        if separator:
            prompt.append(tokenizer.id("<sep>"))
        ids += prompt + target
        loss_mask += [False] * len(prompt) + [True] * len(target)
    return ids, loss_mask


def prompt_ids(
    tokenizer: Tokenizer, messages: Messages, separator: bool = False
) -> list[int]:
    """The ids to generate an answer from: `messages` must end with the user."""
    if messages and messages[-1].get("role") != "user":
        raise ValueError(
            "A prompt must end with a user message, but the last role is "
            f"{messages[-1].get('role')!r}."
        )
    return encode_dialog(tokenizer, messages, separator)[0]


def _segments(
    tokenizer: Tokenizer, user: str, answer: str | None
) -> tuple[list[int], list[int]]:
    """One pair as (prompt ids, answer ids); the answer is empty in an open turn."""
    text = f"[INST] {user} [/INST]"
    prompt = tokenizer.encode(text, bos=True)
    if answer is None:
        return prompt, []
    # The pair is encoded in one go, and the answer starts where the prompt ends.
    pair = tokenizer.encode(f"{text} {answer} ", bos=True, eos=True)
    if pair[: len(prompt)] != prompt:
        raise ValueError(
            "This vocabulary joins the end of the prompt with the start of the "
            "answer, so no loss mask can tell them apart; use another tokenizer."
        )
    return prompt, pair[len(prompt) :]


def _pairs(messages: Messages) -> list[tuple[str, str | None]]:
    """(user, answer) texts in order, the system message merged into the first."""
    turns = [_checked(i, message) for i, message in enumerate(messages)]
    system = None
    if turns and turns[0][0] == "system":
        system = turns.pop(0)[1]
    if not turns:
        raise ValueError("A dialogue needs at least one user message.")
    for i, (role, _) in enumerate(turns):
        expected = ("user", "assistant")[i % 2]
        if role != expected:
            raise ValueError(
                f"Message {i + 1 + (system is not None)} of the dialogue is from the "
                f"{role}, but it is the {expected}'s turn: after an optional system "
                "message, user and assistant alternate, the user first."
            )
    users = [text for _, text in turns[::2]]
    if system is not None:
        users[0] = f"<<SYS>>\n{system}\n<</SYS>>\n\n{users[0]}"
    users = [text.strip() for text in users]  # after merging, as Meta's code does
    answers: list[str | None] = [text.strip() for _, text in turns[1::2]]
    if len(answers) < len(users):
        answers.append(None)
    return list(zip(users, answers, strict=True))


def _checked(i: int, message: Mapping[str, str]) -> tuple[str, str]:
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise ValueError(
            f"Message {i + 1} has the role {role!r}; "
            "the roles are system, user and assistant."
        )
    if not isinstance(content, str):
        raise ValueError(f"Message {i + 1} has no text as its content.")
    for tag in TAGS:
        if tag in content:
            raise ValueError(
                f"The {role} text in message {i + 1} contains {tag}, which is kept "
                "for the dialogue's own layout; take it out of the text."
            )
    return role, content
