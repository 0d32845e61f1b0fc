"""Judges one answer of a captioner."""

from collections.abc import Sequence
from dataclasses import dataclass

from raycap.flags.echo import is_echo
from raycap.flags.languages import is_other_language
from raycap.flags.options import Flags
from raycap.flags.refusals import is_refusal
from raycap.flags.repeats import has_repeats
from raycap.schema import (
    CUT_OFF,
    ECHO,
    EMPTY,
    LOW_SCORE,
    REFUSAL,
    REPEATS,
    THINKING,
    WRONG_LANGUAGE,
)

# Whole answers that say nothing.
_NOTHING_TEXTS = (
    "n/a|na|none|null|nil|undefined|nan|empty|unknown|caption|description|image|picture|photo|"
    "todo|tbd|blank|untitled|nothing|no caption|no description|no text|not available|"
    "not applicable|empty string|no answer|no output|no response|caption here"
)
NOTHING = frozenset(_NOTHING_TEXTS.split("|"))


@dataclass(frozen=True)
class JudgedAnswer:
    """What is known of one answer."""

    text: str  # without reasoning
    caption: str | None = None  # the text when it is finished; None: just the text
    finish_reason: str = ""  # "length": the length limit was reached
    score: float | None = None
    had_reasoning: bool = False


def flags_of(answer: JudgedAnswer, options: Flags, prompts: Sequence[str] = ()) -> list[str]:
    """The flags of an answer, sorted. `prompts` are the texts that were asked with.

    All but `empty` are about what the model wrote, and not about what finishing made of it.
    """
    text = answer.text
    is_low = options.min_score is not None and answer.score is not None
    found = {
        CUT_OFF: answer.finish_reason == "length",
        THINKING: answer.had_reasoning,
        EMPTY: is_empty(text) or (answer.caption is not None and is_empty(answer.caption)),
        LOW_SCORE: is_low and answer.score < options.min_score,  # type: ignore[operator]
        REFUSAL: is_refusal(text),
        REPEATS: has_repeats(text),
        ECHO: is_echo(text, prompts),
        WRONG_LANGUAGE: bool(options.language) and is_other_language(text, options.language),
    }
    return sorted(name for name, is_there in found.items() if is_there)


def flags_in_words(flags: Sequence[str]) -> str:
    """The flags as they are printed behind a caption: " (cut off, repeats)"."""
    return f" ({', '.join(flags)})".replace("_", " ") if flags else ""


def is_empty(text: str) -> bool:
    """Whether a caption has no letter or digit, or is a placeholder."""
    if not any(character.isalnum() for character in text):
        return True
    return text.strip(" \t\n\"'`*_.:;!-<>[]{}()").lower() in NOTHING
