"""How likely a caption is wrong, estimated from three signs.

    doubt = fit_doubt(signs, is_wrong, share=0.05)      # of validation pictures
    doubt.chance(signs_of(scores, familiar, agreement))  # from 0 to 1

The signs are how improbable the captioner found the words of its caption, how unfamiliar the
picture is, and how little the caption agrees with those of similar photos.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
SIGNS = 3
RIDGE = 1e-3


@dataclass(frozen=True)
class Doubt:
    """A logistic regression."""

    weights: tuple[float, ...]  # of the signs, and a constant
    threshold: float
    """The chance from which on the captioner says that it is not sure."""

    def chance(self, signs: Floats) -> Floats:
        """That captions with the signs [B, S] are wrong [B]."""
        logits = signs @ np.array(self.weights[:-1]) + self.weights[-1]
        chance: Floats = 1 / (1 + np.exp(-logits.clip(-50, 50)))
        return chance

    def numbers(self) -> NDArray[np.float32]:
        """As they are written to a file."""
        return np.array([*self.weights, self.threshold], np.float32)

    @staticmethod
    def fits(numbers: NDArray[np.float32]) -> bool:
        """Whether these are the numbers of one: they may be from anybody."""
        return numbers.shape == (SIGNS + 2,) and bool(np.isfinite(numbers).all())

    @staticmethod
    def of(numbers: NDArray[np.float32]) -> "Doubt":
        """What `numbers` gave."""
        *weights, threshold = numbers.tolist()
        return Doubt(tuple(weights), threshold)


def signs_of(scores: Floats, familiar: Floats, agreement: Floats) -> Floats:
    """The signs [B, S] of captions: their log-probability per word, how familiar their pictures
    are, and their agreement with the captions of similar photos."""
    return np.column_stack([-np.asarray(scores), -np.asarray(familiar), -np.asarray(agreement)])


def fit_doubt(signs: Floats, is_wrong: NDArray[np.bool_], share: float) -> Doubt:
    """Fitted to the signs [N, S] of captions, by Newton's method. The captioner is not sure of
    this share of them."""
    mean, spread = signs.mean(0), signs.std(0).clip(1e-9)
    inputs = np.column_stack([(signs - mean) / spread, np.ones(len(signs))])
    weights = np.zeros(inputs.shape[1])
    for _ in range(50):
        chance = 1 / (1 + np.exp(-(inputs @ weights).clip(-50, 50)))
        slope = inputs.T @ (chance - is_wrong) + RIDGE * weights
        curve = (inputs * (chance * (1 - chance))[:, None]).T @ inputs
        weights -= np.linalg.solve(curve + RIDGE * np.eye(len(weights)), slope)
    own = weights[:-1] / spread
    fitted = Doubt((*own.tolist(), float(weights[-1] - own @ mean)), 1.0)
    threshold = float(np.quantile(fitted.chance(signs), 1 - share))
    return Doubt(fitted.weights, threshold)
