"""One step of learning: pictures and captions in, weights moved, the same on one process or many."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raycap.precision import Precision
from raycap.training import Train, checkpoint
from raycap.training.augmented import DRAWS, augmented
from raycap.training.batches import Batch
from raycap.training.checkpoint import Place
from raycap.training.group import Group
from raycap.training.movement import Average, Pace, build_optimiser
from raycap.training.network import Network
from raycap.training.objective import sums, words_read
from raycap.training.phases import COUNTED, Phase
from raycap.training.self_critical import Critic, advantages, likelihood
from raycap.vocabulary import PAD


class Task(NamedTuple):
    """One part of a step, ready to be learned from."""

    pictures: Tensor
    words: Tensor  # [B, R, T + 1] captions to learn, or drawn ones [B, K, T]
    size: Tensor  # [2] words and captions
    read: Tensor | None = None  # the words to read instead, in scheduled sampling
    rewards: Tensor | None = None  # [B, K], of drawn captions
    advantage: Tensor | None = None  # [B, K]


class Learner:
    """The network with what moves its weights, for one phase of a run."""

    def __init__(
        self,
        network: Network,
        options: Train,
        phase: Phase,
        steps: int,
        critic: Critic | None,
        precision: Precision,
        group: Group,
    ) -> None:
        self.network, self.options, self.critic = network, options, critic
        self.precision, self.group = precision, group
        self._steps_of_epoch = steps // phase.epochs
        self.optimiser = build_optimiser(network, options, phase.lr)
        self.pace = Pace(phase.schedule, steps)
        self.average = Average(network, options.optimiser)
        self.scaler = torch.amp.GradScaler(precision.device.type, enabled=precision.dtype == torch.float16)
        self._moving = [weight for weight in network.parameters() if weight.requires_grad]

    @property
    def lr(self) -> float:
        """The decoder's, of the last step."""
        return float(self.optimiser.param_groups[-1]["lr"])

    def step(
        self, parts: Sequence[Batch], place: Place, chance: float, wishes: Sequence[bool]
    ) -> tuple[Tensor, bool, bool]:
        """Learn from this process' share of a step: what it adds to COUNTED, and whether any process has each wish.

        `chance` is of scheduled sampling. Wishes travel with the counts of words, which all must hear anyway.
        """
        # Each step's draws are a function of where it is: a run that goes on needs no state of the generators.
        torch.manual_seed(hash((self.options.seed, place.step, self.group.rank)) & 0x7FFF_FFFF_FFFF_FFFF)
        device = self.precision.device
        tasks = [self._prepare(self._changed(batch.to(device)), chance) for batch in parts]
        sizes = [task.size.to(device) for task in tasks] or [torch.zeros(2, device=device)]
        asked = torch.tensor([float(wish) for wish in wishes], device=device)
        words, captions, *heard = self.group.add(torch.cat([torch.stack(sizes).sum(0), asked]))
        counts = torch.zeros(len(COUNTED), device=device)
        for task in tasks:
            with self.precision.autocast():
                loss, counted = self._loss(task, words, captions)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            counts += counted
        self._move(place.epoch * self._steps_of_epoch + place.step_of_epoch)
        # One process need not ask the device what it said itself.
        stop, save = wishes if self.group.size == 1 else (bool(wish) for wish in heard)
        return counts, stop, save

    def _changed(self, batch: Batch) -> Batch:
        """With pixels as augmentation says; features were changed before they were made."""
        options, pictures = self.options.augmentation, batch.pictures
        if self.network.encoder is not None and options.on:
            draws = torch.rand(len(batch.places), DRAWS, device=self.precision.device)
            pictures = augmented(pictures.permute(0, 3, 1, 2), options, draws, batch.has_sides).permute(0, 2, 3, 1)
        with self.precision.autocast():
            return batch._replace(pictures=self.network.look(pictures))

    def _prepare(self, batch: Batch, chance: float) -> Task:
        if self.critic is not None:
            return self._drawn(batch)
        size = torch.stack([(batch.words[..., 1:] != PAD).sum(), (batch.words[..., 1] != PAD).sum()]).float()
        if not chance:
            return Task(batch.pictures, batch.words, size)
        with torch.no_grad(), self.precision.autocast():
            memory = self.network.remember(batch.pictures)
            return Task(
                batch.pictures, batch.words, size, words_read(self.network.decoder, memory, batch.words, chance)
            )

    def _drawn(self, batch: Batch) -> Task:
        assert self.critic is not None
        seeds = torch.randint(2**62, (len(batch.places),)).tolist()
        self.network.eval()  # captions are drawn as they will be; what is learned of them withstands dropout
        with torch.no_grad(), self.precision.autocast():
            memory = self.network.remember(batch.pictures)
            drawn = self.critic.draw(self.network.decoder, memory, seeds)
        self.network.train()
        rewards = self.critic.rewards(drawn.cpu().numpy(), batch.places)
        size = torch.stack([(drawn != PAD).sum(), torch.tensor(rewards.size, device=drawn.device)]).float()
        moved = (torch.from_numpy(numbers).to(drawn.device) for numbers in (rewards, advantages(rewards)))
        return Task(batch.pictures, drawn, size, None, *moved)

    def _loss(self, task: Task, words: Tensor, captions: Tensor) -> tuple[Tensor, Tensor]:
        """The part's share of the loss over all processes, and what it adds to COUNTED."""
        decoder = self.network.decoder
        if task.advantage is None or task.rewards is None:
            memory = self.network.remember(task.pictures)
            added = sums(decoder, memory, task.words, self.options.objective, task.read)
            loss = added.objective / words + added.penalty / captions
            return loss, torch.cat([added.counts, added.counts.new_zeros(1)])
        memory = self.network.remember(task.pictures)
        likely, true = likelihood(decoder, memory, task.words, self.options.self_critical.temperature)
        loss = -(task.advantage.unsqueeze(2).expand(true.shape)[true] * likely).sum() / words
        counted = [-likely.detach().sum(), words.new_zeros(()), *task.size, task.rewards.sum()]
        return loss, torch.stack(counted)

    def _move(self, of_phase: int) -> None:
        self.group.add_gradients(self._moving)
        self.pace.set(self.optimiser, of_phase)
        self.scaler.unscale_(self.optimiser)
        if self.options.optimiser.clip:
            nn.utils.clip_grad_norm_(self._moving, self.options.optimiser.clip, foreach=True)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad()
        self.average.follow()

    def tensors(self) -> dict[str, Tensor]:
        """Everything that learning has changed."""
        return {
            **{f"network.{name}": tensor for name, tensor in self.network.state_dict().items()},
            **{f"average.{name}": tensor for name, tensor in self.average.tensors().items()},
            **checkpoint.of_optimiser(self.optimiser),
        }

    def numbers(self) -> dict[str, Any]:
        return {"pace": self.pace.state(), "average_steps": self.average.steps, "scaler": self.scaler.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """What `tensors` and `numbers` gave."""
        self.network.load_state_dict(under("network.", tensors))
        self.average.restore(under("average.", tensors), numbers["average_steps"])
        checkpoint.into_optimiser(self.optimiser, tensors)
        self.pace.restore(numbers["pace"])
        self.scaler.load_state_dict(numbers["scaler"])


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
