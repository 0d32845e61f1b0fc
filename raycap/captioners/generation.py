"""What users choose for every captioner that generates text: the prompt, and how words are drawn.

    Generation(prompt="Name the colours.", temperature=0.7, seed=3)

`--captioner huggingface`, `endpoint` and their like have these options and their own.
"""

import hashlib
import math
from dataclasses import dataclass

from raycap.errors import UserError

DEFAULT_PROMPT = "Describe this picture in one sentence."


@dataclass(frozen=True)
class Generation:
    """What is asked, and how the answer's words are chosen."""

    prompt: str = ""
    """What the model is asked about each picture. Empty: "Describe this picture in one
    sentence.", or what the model was trained with."""
    system: str = ""
    """The system message before it, for models that have one. Empty: none."""
    max_tokens: int = 128
    """The most tokens of one caption. What is longer is cut off."""
    temperature: float = 0.0
    """How freely words are drawn: 0 takes the likeliest one each time, 1 draws by probability."""
    top_p: float = 1.0
    """Draw only from the likeliest words that have this probability together."""
    seed: int = 0
    """Another seed draws other words. Each picture has a seed of its own, made of this and its
    bytes, so its caption does not depend on the pictures beside it."""
    stop: tuple[str, ...] = ()
    """Texts at which the caption ends. They are not a part of it."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"--captioner.max-tokens is {self.max_tokens}: give at least 1")
        if not 0 <= self.temperature < math.inf:
            raise UserError(
                f"--captioner.temperature is {self.temperature}: give 0 for the likeliest words, "
                "or a number above 0 such as 0.7"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(
                f"--captioner.top-p is {self.top_p}: give a probability above 0 and at most 1"
            )
        if self.seed < 0:
            raise UserError(f"--captioner.seed is {self.seed}: give 0 or more")
        if "" in self.stop:
            raise UserError(
                "--captioner.stop holds an empty text, which every caption contains: leave it out"
            )


def picture_seed(seed: int, sha256: str, number: int) -> int:
    """The seed of the answer `number` (0, 1, ...) for the picture with this digest: 31 bits, which
    every library and server takes."""
    digest = hashlib.sha256(f"{seed} {sha256} {number}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
