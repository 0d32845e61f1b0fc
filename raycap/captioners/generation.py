"""What users choose for every captioner that generates text: the prompts, and how words are drawn.

    Generation(prompt="Name the colours.", temperature=0.7, seed=3)
    Generation(prompts={"tags": "List tags.", "caption": "Describe it. Tags: {tags}"})

`--captioner huggingface`, `endpoint` and their like have these options and their own.
"""

import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

from raycap.captioners.prompts import Prompt, Template, check_name
from raycap.errors import UserError

DEFAULT_PROMPT = "Describe this picture in one sentence."


@dataclass(frozen=True)
class Generation:
    """What is asked, and how the answer's words are chosen."""

    prompt: str = ""
    """What the model is asked about each picture. {title} is a column of the source's table,
    {key} and {folder} are those of the picture, {tags} is the answer to the earlier prompt
    `tags`, and {{ is a brace. Empty: "Describe this picture in one sentence.", or what the model
    was trained with."""
    prompts: dict[str, str | Prompt] = field(default_factory=dict)
    """Several prompts, asked in order for each picture: {tags: "List tags.", caption: "Describe
    it. Tags: {tags}"}. The last is `caption`; each other one has a column of its own. As flags:
    --prompt.tags "List tags."; options of one prompt: --prompt.tags.max-tokens 40."""
    prompt_column: str = ""
    """The column of the source's table that holds the prompt of each picture, instead of
    --prompt."""
    system: str = ""
    """The system message before it, for models that have one. Empty: none."""
    start: str = ""
    """The first words of the caption, which the model continues. For models that chat, and
    servers that continue an answer."""
    schema: str = ""
    """A file with a JSON schema. The caption is JSON that fits it, and the column caption_parsed
    holds its values."""
    tags: tuple[str, ...] = ()
    """The caption holds only words of this list: the words, or a file with one on each line. The
    column caption_parsed holds them as a list."""
    tries: int = 3
    """How often a model is asked until its answer fits the schema or the tags. What does not fit
    then is a failed row."""
    max_tokens: int = 128
    """The most tokens of one caption. What is longer is cut off."""
    temperature: float = 0.0
    """How freely words are drawn: 0 takes the likeliest one each time, 1 draws by probability."""
    retry_temperature: float = 0.7
    """The temperature of further tries, where the temperature is 0: the likeliest words would be
    the same ones again."""
    top_p: float = 1.0
    """Draw only from the likeliest words that have this probability together."""
    seed: int = 0
    """Another seed draws other words. Each picture has a seed of its own, made of this and its
    bytes, so its caption does not depend on the pictures beside it."""
    stop: tuple[str, ...] = ()
    """Texts at which the caption ends. They are not a part of it."""

    def __post_init__(self) -> None:
        _check_sampling(self, "--captioner")
        if self.seed < 0:
            raise UserError(f"--captioner.seed is {self.seed}: give 0 or more")
        if self.tries < 1:
            raise UserError(f"--captioner.tries is {self.tries}: give at least 1")
        if not 0 < self.retry_temperature < math.inf:
            raise UserError(
                f"--captioner.retry-temperature is {self.retry_temperature}: give a number above "
                "0 such as 0.7"
            )
        if self.prompt_column and self.prompt:
            raise UserError(
                "--prompt and --captioner.prompt-column both say what is asked: give one. "
                f"--prompt can hold {{{self.prompt_column}}}"
            )
        Template(self.prompt)
        for name, prompt in self.prompts.items():
            check_name(name)
            Template(prompt if isinstance(prompt, str) else prompt.text)
            if isinstance(prompt, Prompt):
                _check_sampling(prompt, f"--captioner.prompts.{name}")


def _check_sampling(options: Any, flag: str) -> None:
    """Raises UserError for what cannot be. None is as for the whole captioner."""
    if options.max_tokens is not None and options.max_tokens < 1:
        raise UserError(f"{flag}.max-tokens is {options.max_tokens}: give at least 1")
    if options.temperature is not None and not 0 <= options.temperature < math.inf:
        raise UserError(
            f"{flag}.temperature is {options.temperature}: give 0 for the likeliest words, or a "
            "number above 0 such as 0.7"
        )
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise UserError(f"{flag}.top-p is {options.top_p}: give a probability above 0, at most 1")
    if "" in (options.stop or ()):
        raise UserError(
            f"{flag}.stop holds an empty text, which every caption contains: leave it out"
        )
    if options.schema and options.tags:
        raise UserError(f"{flag}.schema and {flag}.tags both say what an answer is: give one")
    if options.start and (options.schema or options.tags):
        raise UserError(
            f"{flag}.start and a schema or tags do not go together: these say how an answer "
            "starts. Leave it out"
        )


def picture_seed(seed: int, sha256: str, number: int, *more: str) -> int:
    """The seed of the answer `number` (0, 1, ...) for the picture with this digest: 31 bits, which
    every library and server takes. `more` says which prompt, attempt or try it is."""
    text = " ".join((str(seed), sha256, str(number), *more))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
