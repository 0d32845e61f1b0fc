"""A training run from its first step, or from where it was left, to its last: phases, epochs, judging, saving."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raycap.precision import Precision
from raycap.training import checkpoint
from raycap.training.batches import Batch, Lesson, read_ahead
from raycap.training.checkpoint import Place
from raycap.training.group import Group
from raycap.training.journal import Journal
from raycap.training.keeping import CAPTIONER, facts_of, keep, start_from
from raycap.training.learner import Learner
from raycap.training.leave import Leave
from raycap.training.material import Material
from raycap.training.network import Network
from raycap.training.phases import COUNTED, Phase, phases
from raycap.training.self_critical import Critic
from raycap.training.store import Store
from raycap.training.telling import Teller
from raycap.training.validation import better, looked_at, shown, spread, tell, validate

STOP = "stop"  # a file of this name asks a run to save and end


class Run:
    """One process' part in a run. The leader writes the files."""

    def __init__(
        self,
        material: Material,
        out: Path,
        store: Store,
        precision: Precision,
        group: Group,
        report: Callable[[dict[str, Any]], None] = lambda line: None,
        leave: str = "",
    ) -> None:
        self.material, self.options, self.out = material, material.options, out
        self.precision, self.group, self.report = precision, group, report
        self.phases = phases(self.options)
        self.train_lesson = Lesson(store, store.of(*self.options.training_splits), material.vocabulary)
        self.dev_lesson = Lesson(store, store.of(self.options.validation_split), material.vocabulary)
        torch.manual_seed(self.options.seed)
        self.network = self._network(store).train()
        group.share(self.network)
        self.journal = Journal(self.out)
        self.leave = Leave(out, leave) if leave and group.leads else None  # the others wait for the leader
        self._steps = self.train_lesson.steps(self.options.batch)  # of an epoch
        self._steps_of_run = sum(phase.epochs for phase in self.phases) * self._steps
        self.place = Place()

    def _network(self, store: Store) -> Network:
        material, encoder = self.material, self.material.encoder
        decoder = material.plan.decoder.build(
            len(material.vocabulary), encoder.positions, encoder.width, material.embeddings
        )
        network = Network(decoder, encoder.for_training(self.precision) if store.holds_pixels else None)
        if self.options.start_from:
            start_from(network, self.options.start_from)
        return network.to(self.precision.device)

    def go(self) -> bool:
        """Train to the end; False when asked to stop before, with everything saved."""
        saved = checkpoint.load(self.out, self.precision.device)
        if saved is not None:
            self.place = saved[0]
        if self.group.leads:
            self.journal.forget_after(self.place.step)
        for number in range(self.place.phase, len(self.phases)):
            learner = self._learner(self.phases[number])
            if saved is not None:
                learner.restore(*saved[1:])
                saved = None
            elif number:
                self._enter(number, learner)
            if not self._train(learner, self.phases[number]):
                return False
        return True

    def _learner(self, phase: Phase) -> Learner:
        critic = Critic(self.train_lesson, self.options.self_critical) if phase.is_critical else None
        steps = phase.epochs * self._steps
        return Learner(self.network, self.options, phase, steps, critic, self.precision, self.group)

    def _enter(self, number: int, learner: Learner) -> None:
        """A new phase begins from the best captioner of the one before."""
        self.group.wait()  # for the leader to have written it
        start_from(self.network, str(self.out / CAPTIONER))
        learner.average.begin()
        self.place = dataclasses.replace(self.place, phase=number, epoch=0, step_of_epoch=0, waited=0)

    def _train(self, learner: Learner, phase: Phase) -> bool:
        patience = self.options.validation.patience
        while self.place.epoch < phase.epochs and not (patience and self.place.waited >= patience):
            if self.leave is not None:
                self.leave.wait(self.place.epochs_done, self.out / STOP)
            if not self._epoch(learner, phase):
                return False
            self._judge(learner, phase)
        return True

    def _epoch(self, learner: Learner, phase: Phase) -> bool:
        """One look at every picture, from the place that was reached; False when it was left before its end."""
        place, options, group = self.place, self.options, self.group
        shares = self.train_lesson.shares(place.epochs_done, options.seed, options.batch, group.rank, group.size)
        counts = torch.tensor(place.counts or [0.0] * len(COUNTED), device=self.precision.device)
        if not group.leads:
            counts.zero_()  # a checkpoint holds everybody's
        teller = Teller(self.journal if group.leads else None, phase, self._steps_of_run, options.log_steps)
        teller.begin(place, counts)
        began = saved_at = time.monotonic()
        began -= place.seconds
        for parts in read_ahead(shares[place.step_of_epoch :], self._parts):
            wishes = self._wishes(time.monotonic() - saved_at)
            added, stop, save = learner.step(parts, place, self._chance(phase), wishes)
            counts += added
            place.step, place.step_of_epoch = place.step + 1, place.step_of_epoch + 1
            place.seconds = time.monotonic() - began
            if teller.is_due(place) or place.step_of_epoch == self._steps:
                teller.tell(place, group.add(counts.clone()), learner.lr)
            if options.validation.samples_every and place.step % options.validation.samples_every == 0:
                self._show()
            if stop or save:
                place.counts = group.add(counts.clone()).tolist()
                self._save(learner)
                saved_at = time.monotonic()
            if stop:
                return False
        place.counts = group.add(counts).tolist()
        return True

    def _chance(self, phase: Phase) -> float:
        """Of scheduled sampling, in this epoch."""
        growth = self.place.epoch / max(1, phase.epochs - 1)
        return 0.0 if phase.is_critical else self.options.objective.scheduled_sampling * growth

    def _wishes(self, seconds: float) -> tuple[bool, bool]:
        """To stop, and to save, when the last save is `seconds` ago; the leader alone has any."""
        minutes = self.options.checkpoint_minutes
        leads = self.group.leads
        return leads and (self.out / STOP).exists(), leads and 0 < minutes <= seconds / 60

    def _parts(self, share: np.ndarray) -> list[Batch]:
        """One step's pictures, in the parts that fit the memory."""
        pieces = np.array_split(share, self.options.optimiser.accumulate)
        batches = [self.train_lesson.batch(piece) for piece in pieces if len(piece)]
        return [batch.pinned() for batch in batches] if self.precision.device.type == "cuda" else batches

    def _judge(self, learner: Learner, phase: Phase) -> None:
        """After an epoch: validate, keep what is best, note, save."""
        started, place = time.monotonic(), self.place
        learner.average.swap()
        self.group.share(self.network)  # a wholly trained encoder's batch norms saw other pictures in each process
        judged = validate(self.network, self.dev_lesson, self.material, self.precision, self.group)
        counts, place.counts = place.counts, []
        best = self._advance(judged.figures)
        learner.pace.judge(best)
        line = {
            "kind": "epoch",
            "phase": phase.name,
            "epoch": place.epochs_done,
            "step": place.step,
            **phase.means(counts),
            **judged.figures,
            "best": best,
            "seconds": round(place.seconds, 1),
            "validation_seconds": round(time.monotonic() - started, 1),
        }
        if self.group.leads:
            if best:
                facts = facts_of(self.options, self.train_lesson, self.dev_lesson, line)
                keep(self.out, self.material, self.network, facts)
                maps = looked_at(self.network, self.dev_lesson, self.material, self.precision)
                self.journal.show(judged.pictures, maps)
            self.journal.add(line)
        learner.average.swap()
        self._save(learner)
        self.report({name: value for name, value in line.items() if name != "samples"})

    def _advance(self, judged: dict[str, Any]) -> bool:
        """The place after an epoch; whether the epoch was the best so far."""
        place, measure = self.place, self.options.validation.best_by
        score = judged["validation_loss" if measure == "loss" else measure]
        best = better(measure, score, place.best)
        place.epoch, place.epochs_done, place.step_of_epoch = place.epoch + 1, place.epochs_done + 1, 0
        place.waited = 0 if best else place.waited + 1
        if best:
            place.best = score
        return best

    @torch.no_grad()
    def _show(self) -> None:
        """Sample captions in the middle of an epoch."""
        if not self.group.leads:
            return
        self.network.eval()
        places = spread(self.dev_lesson.places, self.options.validation.samples)
        with self.precision.autocast():
            memory = self.network.remember(self.dev_lesson.batch(places).to(self.precision.device).pictures)
            told = tell(self.network, memory, places, self.material.vocabulary, self.material.plan.search)
        self.network.train()
        self.journal.add({"kind": "samples", "step": self.place.step, "samples": shown(self.dev_lesson, told)})

    def _save(self, learner: Learner) -> None:
        if self.group.leads:
            checkpoint.save(self.out, self.place, learner.tensors(), learner.numbers())
