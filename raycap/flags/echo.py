"""Finds the prompt in an answer."""

from collections.abc import Sequence

from raycap.flags.words import words_of

# So many words in a row are no accident. A shorter prompt must be there as a whole.
WORDS_IN_A_ROW = 8
SHORTEST_PROMPT = 4


def is_echo(text: str, prompts: Sequence[str]) -> bool:
    """Whether the text repeats one of the prompts, or a long piece of one."""
    words = words_of(text)
    for prompt in prompts:
        asked = words_of(prompt)
        if len(asked) < SHORTEST_PROMPT:
            if asked and words[: len(asked)] == asked and len(words) == len(asked):
                return True
            continue
        length = min(len(asked), WORDS_IN_A_ROW)
        pieces = {tuple(asked[at : at + length]) for at in range(len(asked) - length + 1)}
        if any(tuple(words[at : at + length]) in pieces for at in range(len(words) - length + 1)):
            return True
    return False
