"""The prompts of a captioner with everything decided: for each picture they are asked in order.

for stage in stages:
    question = stage.question(row, answers)       # may raise Unanswerable
    ... the model's text ...
    answers[stage.name] = stage.answer(text)      # may raise Unanswerable
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raycap.captioners.generation import Generation, picture_seed
from raycap.captioners.prompts import (
    CAPTION,
    FOLDER,
    KEY,
    REFERENCE,
    Prompt,
    Unanswerable,
    template_of,
    values_of,
)
from raycap.captioners.structured import Fitted, Structure, read_schema, read_tags
from raycap.errors import UserError
from raycap.schema import ATTEMPT

# Behind the name of a prompt: the columns of parsed answers, and of the words that tags are of.
PARSED, RAW = "_parsed", "_raw"


@dataclass(frozen=True)
class Stage:
    """One prompt with all its options."""

    name: str
    text: str
    """A template."""
    system: str
    start: str
    max_tokens: int
    temperature: float
    retry_temperature: float
    top_p: float
    stop: tuple[str, ...]
    seed: int
    tries: int
    structure: Structure | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What its text needs: earlier prompts, columns, parts of the key."""
        return template_of(self.text).names

    def question(
        self, row: Mapping[str, Any], answers: Mapping[str, Answer], number_of_try: int = 0
    ) -> Question:
        """What is asked about one picture. Raises Unanswerable if a value is missing."""
        template = template_of(self.text)
        earlier = {name: answer.text for name, answer in answers.items()}
        prompt = template.render(values_of(template, row, earlier))
        attempt = int(row.get(ATTEMPT) or 0)
        return self._asked(prompt, attempt, number_of_try)

    def sample_question(self) -> Question:
        """The question with names in place of values, to see whether it can be asked at all."""
        return self._asked(template_of(self.text).with_names(), 0, 0)

    def _asked(self, prompt: str, attempt: int, number_of_try: int) -> Question:
        if self.structure is not None:
            prompt = f"{prompt}\n{self.structure.instruction()}"
        temperature = self.temperature
        if not temperature and (attempt or number_of_try):
            temperature = self.retry_temperature
        return Question(self, prompt, temperature, attempt, number_of_try)

    def answer(self, text: str, was_cut: bool = False) -> Answer:
        """Raises Unanswerable if the text does not fit."""
        if self.structure is None:
            return Answer(text, text)
        try:
            fitted = self.structure.fit(text)
        except Unanswerable as fault:
            if was_cut:
                raise Unanswerable(
                    "the answer was cut off before it fitted: give more --captioner.max-tokens"
                ) from None
            raise fault
        return Answer(fitted.text, text, fitted)

    def fits(self, text: str) -> bool:
        try:
            self.answer(text)
        except Unanswerable:
            return False
        return True

    def identity(self) -> dict[str, Any]:
        draws = self.temperature > 0
        return {
            "name": self.name,
            "prompt": self.text,
            "system": self.system,
            "start": self.start,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p if draws else None,
            "stop": list(self.stop),
            "structure": None if self.structure is None else dataclasses.asdict(self.structure),
        }


@dataclass(frozen=True)
class Question:
    """What is asked about one picture."""

    stage: Stage
    prompt: str
    temperature: float
    attempt: int = 0
    """How often the row was made before: another attempt draws other words."""
    number_of_try: int = 0
    """How many answers did not fit before this one."""

    def seed(self, sha256: str, number: int) -> int:
        """The seed of the answer `number` about the picture with this digest."""
        return picture_seed(self.stage.seed, sha256, number, *self.draw())

    def draw(self) -> tuple[str, ...]:
        """Which prompt, attempt and try this is; empty for the first of a caption."""
        name, attempt, number = self.stage.name, self.attempt, self.number_of_try
        return (
            *([] if name == CAPTION else [f"prompt {name}"]),
            *([f"attempt {attempt}"] if attempt else []),
            *([f"try {number}"] if number else []),
        )


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt."""

    text: str
    """The stage's column; later prompts quote it."""
    raw: str
    """What the model said."""
    fitted: Fitted | None = None


def resolve_stages(asked: Generation, default: str) -> tuple[Stage, ...]:
    """The prompts in order, the last one `caption`. Reads the files of schemas and tags.
    `default` is asked where nothing else is."""
    earlier = dict(asked.prompts)
    last = earlier.pop(CAPTION, None)
    text = asked.prompt or (f"{{{asked.prompt_column}}}" if asked.prompt_column else "")
    if last is not None and text:
        raise UserError(
            "--captioner.prompts has a `caption`, and --prompt or --captioner.prompt-column says "
            "what that is too: give one"
        )
    if last is not None and next(reversed(asked.prompts)) != CAPTION:
        raise UserError("the prompt `caption` is the last one: put it behind the others")
    if last is None and not text and earlier:
        names = ", ".join(earlier)
        raise UserError(
            f"--captioner.prompts has {names}, and nothing for the caption: call the last one "
            "`caption`, or give --prompt"
        )
    stages = [_stage(name, prompt, asked) for name, prompt in earlier.items()]
    if last is None:
        last = text or default
    of_caption = last if isinstance(last, Prompt) else Prompt(text=last)
    of_caption = dataclasses.replace(
        of_caption,
        start=of_caption.start or asked.start,
        schema=of_caption.schema or ("" if of_caption.tags else asked.schema),
        tags=of_caption.tags or (() if of_caption.schema else asked.tags),
    )
    stages.append(_stage(CAPTION, of_caption, asked, default))
    _check_order([stage.name for stage in stages], stages)
    return tuple(stages)


def _stage(name: str, prompt: str | Prompt, asked: Generation, default: str = "") -> Stage:
    own = prompt if isinstance(prompt, Prompt) else Prompt(text=prompt)
    text = own.text or default
    if not text.strip() and name != CAPTION:
        raise UserError(f"the prompt {name} is empty: say what is asked")
    structure = None
    if own.schema:
        structure = read_schema(own.schema)
    elif own.tags:
        structure = read_tags(own.tags)
    return Stage(
        name=name,
        text=text,
        system=asked.system if own.system is None else own.system,
        start=own.start,
        max_tokens=asked.max_tokens if own.max_tokens is None else own.max_tokens,
        temperature=asked.temperature if own.temperature is None else own.temperature,
        retry_temperature=asked.retry_temperature,
        top_p=asked.top_p if own.top_p is None else own.top_p,
        stop=asked.stop if own.stop is None else own.stop,
        seed=asked.seed,
        tries=asked.tries,
        structure=structure,
    )


def _check_order(names: Sequence[str], stages: Sequence[Stage]) -> None:
    """Raises UserError if a prompt quotes itself or a later one."""
    for number, stage in enumerate(stages):
        for later in names[number:]:
            if later in stage.names and len(names) > 1:
                raise UserError(
                    f"the prompt {stage.name} holds {{{later}}}, which is answered "
                    f"{'by itself' if later == stage.name else 'later'}: a prompt can hold the "
                    "answers of earlier ones"
                )


def columns_read(stages: Sequence[Stage]) -> tuple[str, ...]:
    """The columns of rows that the prompts need: those of the source's table, and `key`,
    `references`."""
    answered: set[str] = set()
    read: dict[str, None] = {}
    for stage in stages:
        for name in stage.names:
            if name not in answered:
                read[{FOLDER: KEY, REFERENCE: "references"}.get(name, name)] = None
        answered.add(stage.name)
    return tuple(read)


def columns_of(stages: Sequence[Stage]) -> list[pa.Field]:
    """The columns of answers, besides `caption`."""
    fields = []
    for stage in stages:
        if stage.name != CAPTION:
            fields.append(pa.field(stage.name, pa.string()))
        if stage.structure is not None:
            if stage.structure.tags:
                fields.append(pa.field(stage.name + RAW, pa.string()))
            fields.append(pa.field(stage.name + PARSED, stage.structure.arrow_type()))
    return fields


def values_of_columns(stages: Sequence[Stage], answers: Mapping[str, Answer]) -> dict[str, Any]:
    """The values of these columns."""
    values: dict[str, Any] = {}
    for stage in stages:
        answer = answers[stage.name]
        if stage.name != CAPTION:
            values[stage.name] = answer.text
        if stage.structure is not None and answer.fitted is not None:
            if stage.structure.tags:
                values[stage.name + RAW] = answer.raw
            values[stage.name + PARSED] = answer.fitted.parsed
    return values


def identity_of(stages: Sequence[Stage]) -> dict[str, Any]:
    """What of the prompts determines the captions and is not among the options of one plain
    prompt."""
    [*earlier, last] = stages
    if not earlier and not last.start and last.structure is None:
        return {}
    return {"prompts": [stage.identity() for stage in stages]}


def reason_of(stages: Sequence[Stage], stage: Stage, fault: str, always: bool = False) -> str:
    """Why a row failed. Where there are several prompts, it names the one."""
    return f"prompt {stage.name}: {fault}" if always or len(stages) > 1 else fault


def fixed_texts(stages: Sequence[Stage]) -> tuple[str, ...]:
    """What the prompt of the captions says about every picture, without values of rows."""
    return template_of(stages[-1].text).fixed_texts()
