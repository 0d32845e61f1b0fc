"""The stretches of a run, each with its own objective and learning rate."""

import dataclasses
from dataclasses import dataclass

from raycap.training import Schedule, Train

COUNTED = ("surprise", "right", "words", "captions", "reward")  # what the steps of an epoch add up


@dataclass(frozen=True)
class Phase:
    """A stretch of a run."""

    name: str
    epochs: int
    lr: float
    schedule: Schedule

    @property
    def is_critical(self) -> bool:
        return self.name == "self_critical"

    def means(self, counts: list[float]) -> dict[str, float]:
        """What a stretch of steps added up, as figures of the journal."""
        surprise, right, words, captions, reward = counts
        if self.is_critical:
            return {"reward": reward / captions, "surprise": surprise / words, "words": words / captions}
        return {"training_loss": surprise / words, "training_accuracy": right / words}


def phases(options: Train) -> list[Phase]:
    """Cross-entropy, then self-critical training, as far as asked for."""
    critical = options.self_critical
    both = [
        Phase("cross_entropy", options.epochs, options.lr, options.schedule),
        # It starts from a trained captioner: nothing is to be warmed up.
        Phase("self_critical", critical.epochs, critical.lr, dataclasses.replace(options.schedule, warmup=0)),
    ]
    return [phase for phase in both if phase.epochs]
