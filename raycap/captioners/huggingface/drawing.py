"""Which token comes next, and how sure the model is of it.

`generate` of transformers draws for a whole batch from one generator, so an answer would depend on
its neighbours. Here each picture has its own random numbers, and only the tokens of one step are
kept in memory to compute the score.
"""

from collections.abc import Sequence
from typing import Any

import torch


class Draw:
    """Chooses the next token of each row: the likeliest, or one drawn with the row's own numbers.

    It is the last logits processor of `generate`: it leaves it only the token that it chose.
    """

    def __init__(self, temperature: float, top_p: float, seeds: Sequence[int], most: int) -> None:
        self.temperature, self.top_p = temperature, top_p
        self.prefix = -1  # tokens before the new ones
        self.tokens: list[torch.Tensor] = []  # of each step [B]
        self.logs: list[torch.Tensor] = []  # their log-probabilities [B]
        self._numbers = torch.empty(0)
        if temperature > 0:
            numbers = [
                torch.rand(
                    most, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
                )
                for seed in seeds
            ]
            self._numbers = torch.stack(numbers)  # [B, most], each 0 to 1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.prefix < 0:
            self.prefix = input_ids.shape[1]
        step = input_ids.shape[1] - self.prefix
        if self.temperature > 0:
            chosen = self._drawn(scores.double(), step)
        else:
            chosen = scores.argmax(-1, keepdim=True)
        logs = torch.log_softmax(scores.float(), -1)
        self.tokens.append(chosen[:, 0])
        self.logs.append(logs.gather(-1, chosen)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)

    def _drawn(self, scores: torch.Tensor, step: int) -> torch.Tensor:
        """The first of the tokens, likeliest first, that together have the drawn probability."""
        probabilities, tokens = torch.sort(
            torch.softmax(scores / self.temperature, -1), descending=True, stable=True
        )
        before = probabilities.cumsum(-1) - probabilities
        kept = before < self.top_p  # always the first
        kept[:, 0] = True
        below = (probabilities * kept).cumsum(-1)
        step = min(step, self._numbers.shape[1] - 1)
        number = self._numbers[:, step : step + 1].to(scores.device) * below[:, -1:]
        place = (below <= number).sum(-1, keepdim=True)
        return tokens.gather(-1, torch.minimum(place, kept.sum(-1, keepdim=True) - 1))


class BeamNotes:
    """For a beam search, which has several rows for a picture: notes how many tokens there are
    before the new ones, and changes nothing."""

    prefix = -1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.prefix < 0:
            self.prefix = input_ids.shape[1]
        return scores


class Forget:
    """Ends nothing. A beam search keeps the scores of all words at each step, only to return them:
    gigabytes that are never read."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        for each in scores or ():
            each.set_()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class Stop:
    """Ends a row when its new text holds one of the stop texts."""

    def __init__(self, stops: Sequence[str], tokenizer: Any, noted: Draw | BeamNotes) -> None:
        self.stops, self.tokenizer, self.noted = stops, tokenizer, noted

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        texts = self.tokenizer.batch_decode(
            input_ids[:, self.noted.prefix :], skip_special_tokens=True
        )
        ended = [any(stop in text for stop in self.stops) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


def new_tokens(row: Sequence[int], ends: set[int], padding: int | None) -> list[int]:
    """The tokens up to the first that ends an answer, with it; without the padding behind them."""
    for place, token in enumerate(row):
        if token in ends:
            return list(row[: place + 1])
    count = len(row)
    while count and row[count - 1] == padding:
        count -= 1
    return list(row[:count])
