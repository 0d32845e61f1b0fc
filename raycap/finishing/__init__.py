"""From what a model wrote to the caption of a row: reasoning is cut out, the text is finished, and
flags say what may be wrong with it.

    finishing = Finishing(Finish(first_sentence=True), Flags(min_score=-1.5))
    finishing.complete("A dog. It is brown.", score=-0.4).caption  ->  "A dog."
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from raycap.finishing.options import Finish
from raycap.finishing.reasoning import without_reasoning
from raycap.finishing.text import finish_text
from raycap.flags import Flags, JudgedAnswer, flags_of
from raycap.options import to_plain

__all__ = ["Finish", "FinishedCaption", "Finishing", "finish_text", "without_reasoning"]

# Raise it when other captions or flags come out of the same answers.
RULES = 1


@dataclass(frozen=True)
class FinishedCaption:
    """The columns that are made of an answer."""

    caption: str
    raw_caption: str | None  # the answer; None where the caption is just that
    flags: list[str]  # sorted


@dataclass(frozen=True)
class Finishing:
    """How answers become captions."""

    finish: Finish = field(default_factory=Finish)
    flags: Flags = field(default_factory=Flags)
    prompts: tuple[str, ...] = ()
    """What the captioner asks with, for the flag echo."""

    def identity(self) -> dict[str, Any]:
        """What determines captions and flags, where the answers are the same."""
        return {
            "rules": RULES,
            "finish": to_plain(self.finish),
            "flags": to_plain(self.flags),
            "prompts": list(self.prompts),
        }

    def digest(self) -> str:
        text = json.dumps(self.identity(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def complete(
        self,
        raw: str,
        score: float | None = None,
        finish_reason: str = "",
        more_flags: Iterable[str] = (),
    ) -> FinishedCaption:
        """The caption of an answer. `more_flags` come from elsewhere, such as the captioner."""
        text, had_reasoning = without_reasoning(raw)
        caption = finish_text(text, self.finish)
        answer = JudgedAnswer(text, caption, finish_reason, score, had_reasoning)
        found = {*flags_of(answer, self.flags, self.prompts), *more_flags}
        return FinishedCaption(caption, None if caption == raw else raw, sorted(found))
