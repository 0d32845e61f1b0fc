"""From the tokens of an answer to its text: where it ends, and what its first words are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raycap.captioners.huggingface.drawing import new_tokens
from raycap.captioners.stages import Question

# Tokens before an answer that is decoded with them, so that its first space is not lost.
_TOKENS_BEFORE = 4


@dataclass(frozen=True)
class Generated:
    """An answer of the model."""

    text: str
    score: float
    """Mean log-probability of its tokens."""
    tokens_in: int | None
    tokens_out: int
    finish_reason: str


class AnswerReader:
    """Reads what a model has generated."""

    def __init__(self, model: Any, tokenizer: Any, family: str, keeps_prompt: bool) -> None:
        """With `keeps_prompt` an answer begins with its prompt, which it continues."""
        self._tokenizer, self._keeps_prompt = tokenizer, keeps_prompt
        self._ends = end_tokens(model, tokenizer, family)

    def read(
        self, question: Question, row: list[int], logs: list[float], tokens_in: int | None
    ) -> Generated:
        """The answer in a row of tokens. `logs` are the log-probabilities of its tokens; a beam
        search has one score for all of them."""
        tokens = new_tokens(row, self._ends, self._tokenizer.pad_token_id)
        cut = self._cut(tokens, question.stage.stop)
        stopped = cut is not None or bool(tokens and tokens[-1] in self._ends)
        if cut is None:
            text = self._text(tokens)
        else:
            text, tokens = cut
        if self._keeps_prompt and text:
            text = f"{question.prompt} {text}".strip()
        if question.stage.start and text:
            text = self._continued(question.stage.start, tokens, text)
        kept = logs[: len(tokens)]
        score = sum(kept) / max(1, len(kept))
        return Generated(text, score, tokens_in, len(tokens), "stop" if stopped else "length")

    def _continued(self, start: str, tokens: list[int], text: str) -> str:
        """The first words of an answer and the text that continues them, with a space between
        them if the tokens have one."""
        before = self._tokenizer(start, add_special_tokens=False)["input_ids"][-_TOKENS_BEFORE:]
        both = str(self._tokenizer.decode([*before, *tokens], skip_special_tokens=True))
        alone = str(self._tokenizer.decode(before, skip_special_tokens=True))
        behind = both[len(alone) :] if both.startswith(alone) else f" {text}"
        gap = behind[: len(behind) - len(behind.lstrip())]
        return f"{start}{gap}{text}".strip()

    def _cut(self, tokens: list[int], stops: tuple[str, ...]) -> tuple[str, list[int]] | None:
        """The text before the first stop text, and the tokens up to it; None if there is none."""
        if not any(stop in self._text(tokens) for stop in stops):
            return None
        for count in range(1, len(tokens) + 1):
            text = self._text(tokens[:count])
            found = [text.find(stop) for stop in stops if stop in text]
            if found:
                return text[: min(found)].strip(), tokens[:count]
        return None

    def _text(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def end_tokens(model: Any, tokenizer: Any, family: str) -> set[int]:
    """The tokens that end an answer."""
    settings = getattr(model, "generation_config", None)
    found = [getattr(settings, "eos_token_id", None), tokenizer.eos_token_id]
    inner = getattr(getattr(model, "language_model", None), "generation_config", None)
    found.append(getattr(inner, "eos_token_id", None))
    if family in ("blip", "git", "vision-encoder-decoder"):
        found.append(tokenizer.sep_token_id)
    if family == "blip":
        found.append(model.config.text_config.sep_token_id)
    ends: set[int] = set()
    for each in found:
        if each is not None:
            ends.update([each] if isinstance(each, int) else each)
    return ends
