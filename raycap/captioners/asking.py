"""Asks the prompts of a captioner about one picture, one after the other, until an answer fits.

Servers and engines do it in this way, picture by picture. A model that takes batches goes through
the prompts with all pictures of a batch (`huggingface/captioner.py`).
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raycap.captioners.prompts import Unanswerable
from raycap.captioners.protocol import Alternative, Prediction
from raycap.captioners.stages import Answer, Question, Stage, reason_of, values_of_columns


@dataclass(frozen=True)
class Candidate:
    """One text that was answered to a question."""

    text: str
    score: float | None
    finish_reason: str


class Refused(Exception):
    """Why a question has no answer at all: the reason of the row."""


Ask = Callable[[Question], Awaitable[list[Candidate]]]


async def ask_prompts(stages: Sequence[Stage], row: Mapping[str, Any], ask: Ask) -> Prediction:
    """The answers to all prompts. `ask` gives at least one text for a question, or raises Refused;
    what else it raises ends the run."""
    answers: dict[str, Answer] = {}
    found: list[Candidate] = []
    was_cut = False
    for stage in stages:
        try:
            found, answers[stage.name] = await _ask_until_one_fits(stage, row, answers, ask)
        except Refused as fault:
            return Prediction(error=reason_of(stages, stage, str(fault)))
        except Unanswerable as fault:
            return Prediction(error=reason_of(stages, stage, str(fault), always=True))
        was_cut = was_cut or found[0].finish_reason == "length"
    last, (best, *others) = stages[-1], found
    return Prediction(
        answers[last.name].text,
        best.score,
        tuple(Alternative(last.answer(each.text).text, each.score) for each in others),
        extras={
            **values_of_columns(stages, answers),
            "finish_reason": "length" if was_cut else best.finish_reason,
        },
    )


async def _ask_until_one_fits(
    stage: Stage, row: Mapping[str, Any], earlier: Mapping[str, Answer], ask: Ask
) -> tuple[list[Candidate], Answer]:
    """The texts that were answered at last, the best one first, and what the best one says."""
    fault: Unanswerable | None = None
    for number_of_try in range(stage.tries):
        question = stage.question(row, earlier, number_of_try)
        found = _best_first(stage, await ask(question))
        try:
            return found, stage.answer(found[0].text, found[0].finish_reason == "length")
        except Unanswerable as misfit:
            fault = misfit
    assert fault is not None
    raise fault


def _best_first(stage: Stage, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that fit, with a higher score before others; one if none fits."""
    found = list(candidates)
    if all(each.score is not None for each in found):
        found.sort(key=lambda each: -(each.score or 0.0))
    if len(found) == 1:
        return found
    return [each for each in found if stage.fits(each.text)] or found[:1]
