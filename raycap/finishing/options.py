"""The options of finishing: what is made of a caption after the model has written it."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raycap.errors import UserError

ARROW = "=>"
LONGEST_PATTERN = 1000
# Has a boundary of words, a space, a number and two lines.
PROBE = "a 1,B\nc"


@dataclass(frozen=True)
class Finish:
    """What is made of each caption, in this order. What the model wrote stays in the column
    raw_caption; with other options, the same command makes the captions again without the
    model."""

    strip_openings: bool = False
    """Leave out openings such as "The image shows" or "This is a picture of"."""
    openings: tuple[str, ...] = ()
    """Openings to leave out besides the usual ones: "In this scene, we see"."""
    replace: tuple[str, ...] = ()
    """Texts to replace by others: "grey=>gray", or "very =>" to leave out."""
    replace_regex: tuple[str, ...] = ()
    """The same with regular expressions (RE2's syntax, which has no backtracking):
    "(\\d+) ?km=>\\1 kilometres"."""
    one_line: bool = False
    """One line: each line break and row of spaces becomes one space."""
    first_sentence: bool = False
    """Only the first sentence."""
    lower: bool = False
    """In lower case."""
    max_words: int | None = None
    """At most so many words in all: whole sentences where one fits, else whole words."""
    max_tokens: int | None = None
    """At most so many tokens in all, in the same way. They are estimated as a text encoder such as
    CLIP's would count them, rather too many than too few."""
    trigger: str = ""
    """A trigger word: put before the caption, with a comma, where the caption has it nowhere."""
    prepend: str = ""
    """Text before each caption, where it is not there already."""
    append: str = ""
    """Text behind each caption, where it is not there already: ", high quality"."""

    def __post_init__(self) -> None:
        for name in ("max_words", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--finish.{name.replace('_', '-')} is {value}: give at least 1")
        for name in ("trigger", "prepend", "append"):
            text = getattr(self, name)
            if text and not text.strip():
                raise UserError(f"--finish.{name} holds spaces only: leave it out")
            if "\n" in text or "\r" in text:
                raise UserError(f"--finish.{name} has a line break in it: give one line")
        for opening in self.openings:
            if not opening.strip():
                raise UserError("--finish.openings holds an empty text: leave it out")
        for old, new in self.replacements():
            if old in new and old != new:
                raise UserError(
                    f'--finish.replace "{old}{ARROW}{new}" would replace its own result again: '
                    "give a text that does not hold the old one"
                )
        for pattern, new in self.patterns():
            _check_pattern(pattern, new)
        self._check_room()

    def replacements(self) -> list[tuple[str, str]]:
        """Old and new texts of `replace`."""
        return [_split(rule, "replace") for rule in self.replace]

    def patterns(self) -> list[tuple[str, str]]:
        """Patterns and new texts of `replace_regex`."""
        return [_split(rule, "replace-regex") for rule in self.replace_regex]

    @property
    def additions(self) -> str:
        """All that may be put around a caption."""
        trigger = f"{self.trigger}," if self.trigger else ""
        return f"{trigger} {self.prepend} {self.append}".strip()

    def _check_room(self) -> None:
        from raycap.finishing.lengths import token_count, word_count

        for name, count in (("max_words", word_count), ("max_tokens", token_count)):
            most, taken = getattr(self, name), count(self.additions)
            if most is not None and taken >= most:
                raise UserError(
                    f"--finish.{name.replace('_', '-')} is {most}, and the trigger word and the "
                    f"texts around the caption take {taken} of them: allow more, or shorten them"
                )


def _split(rule: str, name: str) -> tuple[str, str]:
    old, arrow, new = rule.partition(ARROW)
    if not arrow or not old:
        raise UserError(f'--finish.{name} is {rule!r}: give OLD{ARROW}NEW, such as "grey=>gray"')
    return old, new


def _check_pattern(pattern: str, new: str) -> None:
    """Raises UserError for what RE2 does not take, and for rules that would never come to an
    end."""
    if len(pattern) > LONGEST_PATTERN:
        raise UserError(
            f"a pattern of --finish.replace-regex has {len(pattern):,} characters: give at most "
            f"{LONGEST_PATTERN:,}"
        )
    try:
        replaced = replace_pattern(PROBE, pattern, new)
        is_everywhere = _matches("", pattern) or (
            replaced != PROBE and replace_pattern(PROBE, pattern, "") == PROBE
        )
        is_endless = _matches(new, pattern)
    except pa.ArrowInvalid as error:
        reason = str(error).split("\n")[0]
        raise UserError(
            f"--finish.replace-regex {pattern!r}: {reason}. Patterns are those of RE2, without "
            "lookahead, lookbehind and references inside the pattern"
        ) from error
    if is_everywhere:
        raise UserError(
            f"--finish.replace-regex {pattern!r} matches an empty text, which is everywhere: let "
            "it match at least one character"
        )
    if is_endless:
        raise UserError(
            f'--finish.replace-regex "{pattern}{ARROW}{new}" would replace its own result again: '
            "give a new text that the pattern does not match"
        )


def _matches(text: str, pattern: str) -> bool:
    found: bool = pc.match_substring_regex(pa.array([text]), pattern=pattern)[0].as_py()
    return found


def replace_pattern(text: str, pattern: str, new: str) -> str:
    """The text with each match of the pattern replaced. RE2 takes time in proportion to the text,
    whatever the pattern: no pattern can hang a worker."""
    found: str = pc.replace_substring_regex(
        pa.array([text], pa.string()), pattern=pattern, replacement=new
    )[0].as_py()
    return found
