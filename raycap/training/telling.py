"""The lines that a run writes to its journal while an epoch goes on."""

import time

from torch import Tensor

from raycap.training.checkpoint import Place
from raycap.training.journal import Journal
from raycap.training.phases import Phase


class Teller:
    """Figures of the steps since the last line. Without a journal (in one that does not lead) it is silent."""

    def __init__(self, journal: Journal | None, phase: Phase, steps_of_run: int, every: int) -> None:
        self._journal, self._phase, self._steps_of_run, self._every = journal, phase, steps_of_run, every

    def begin(self, place: Place, counts: Tensor) -> None:
        """From here on."""
        self._counts, self._step, self._time = counts.clone(), place.step, time.monotonic()

    def is_due(self, place: Place) -> bool:
        """Whether a line is wanted after this step; the same in all processes, which then add their counts up."""
        return place.step % self._every == 0

    def tell(self, place: Place, counts: Tensor, lr: float) -> None:
        """A line; `counts` are everybody's since the epoch began."""
        if self._journal is not None:
            seconds = max(time.monotonic() - self._time, 1e-9)
            new = (counts - self._counts).tolist()
            self._journal.add(
                {
                    "kind": "step",
                    "phase": self._phase.name,
                    "epoch": place.epochs_done + 1,
                    "step": place.step,
                    "steps": self._steps_of_run,
                    **self._phase.means(new),
                    "lr": lr,
                    "captions_per_second": round(new[3] / seconds, 1),
                    "steps_per_second": round((place.step - self._step) / seconds, 3),
                }
            )
        self.begin(place, counts)
