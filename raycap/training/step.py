"""One training step, from a batch of pictures and captions to updated weights.

The result does not depend on the number of workers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raycap.decoders.recurrent import AttentiveDecoder
from raycap.device import Precision
from raycap.images.augmentation import DRAWS, augment
from raycap.training.checkpoint import TrainState, optimiser_tensors, restore_optimiser
from raycap.training.dataset import Batch
from raycap.training.distillation import Teacher, distilled_loss
from raycap.training.distributed import WorkerGroup
from raycap.training.loss import caption_loss, scheduled_sampling_inputs
from raycap.training.network import Network, without_prefix
from raycap.training.optimiser import LearningRates, WeightAverage, build_optimiser
from raycap.training.options import Schedule, Train
from raycap.training.self_critical import (
    CaptionReward,
    advantages,
    draw_captions,
    log_likelihood,
)
from raycap.vocabulary import PAD

# The sums that steps add up over an epoch, in this order.
COUNTED = ("cross_entropy", "correct", "words", "captions", "reward")


@dataclass(frozen=True)
class Phase:
    """A part of a run with its own loss and learning rate: cross-entropy, or self-critical
    training."""

    name: str
    epochs: int
    lr: float
    schedule: Schedule

    @property
    def is_self_critical(self) -> bool:
        return self.name == "self_critical"

    def figures(self, counts: Sequence[float]) -> dict[str, float]:
        """The means for the log, from the sums of some steps in the order of COUNTED."""
        cross_entropy, correct, words, captions, reward = counts
        if self.is_self_critical:
            return {
                "reward": reward / captions,
                "surprise": cross_entropy / words,
                "words": words / captions,
            }
        return {"training_loss": cross_entropy / words, "training_accuracy": correct / words}


class Learner:
    """The network, optimiser, schedule and weight average of one phase."""

    def __init__(
        self,
        network: Network,
        options: Train,
        phase: Phase,
        steps_per_epoch: int,
        reward: CaptionReward | None,
        precision: Precision,
        group: WorkerGroup,
        teacher: Teacher | None = None,
    ) -> None:
        self.network, self.options, self.reward = network, options, reward
        self.teacher = teacher
        self.part_loss = part_loss
        if options.compile:
            self._compile()
        self.precision, self.group = precision, group
        self.steps_per_epoch = steps_per_epoch
        self.optimiser = build_optimiser(network, options, phase.lr)
        self.rates = LearningRates(phase.schedule, phase.epochs * steps_per_epoch)
        self.average = WeightAverage(network, options.optimiser)
        is_fp16 = precision.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(precision.device.type, enabled=is_fp16)
        self.weights = [weight for weight in network.parameters() if weight.requires_grad]
        self.synchronises = (
            network.encoder is not None
            and network.encoder.is_trained
            and options.batch_norm == "synchronised"
            and group.size > 1
        )

    def _compile(self) -> None:
        # Captions of each batch have another length, so shapes are dynamic.
        if isinstance(self.network.decoder, AttentiveDecoder):
            self.network.decoder.compile_cell()
        else:
            self.part_loss = torch.compile(part_loss, dynamic=True)

    @property
    def lr(self) -> float:
        """The decoder's learning rate in the last step."""
        return float(self.optimiser.param_groups[-1]["lr"])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that training changes, for a checkpoint."""
        network = self.network.state_dict()
        average = self.average.tensors()
        return {
            **{f"network.{name}": tensor for name, tensor in network.items()},
            **{f"average.{name}": tensor for name, tensor in average.items()},
            **optimiser_tensors(self.optimiser),
        }

    def numbers(self) -> dict[str, Any]:
        """The rest of the state, for the JSON file of a checkpoint."""
        return {
            "pace": self.rates.state(),  # the name in the files of earlier versions
            "average_steps": self.average.steps,
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Load the state from `tensors` and `numbers` of a checkpoint."""
        self.network.load_state_dict(without_prefix("network.", tensors))
        self.average.restore(without_prefix("average.", tensors), numbers["average_steps"])
        restore_optimiser(self.optimiser, tensors)
        self.rates.restore(numbers["pace"])
        self.scaler.load_state_dict(numbers["scaler"])


def train_step(
    learner: Learner, batches: Sequence[Batch], state: TrainState, sampling: float
) -> Tensor:
    """One update of the weights, from this worker's share of a step. Returns its sums, in the
    order of COUNTED.

    `batches` are the parts of the share, for gradient accumulation. In a small last step a worker
    may have none. `sampling` is the probability of scheduled sampling.
    """
    options, group, precision = learner.options, learner.group, learner.precision
    device, optimiser, scaler = precision.device, learner.optimiser, learner.scaler

    # The random numbers of a step depend on its number alone: a run that continues needs no saved
    # generators.
    torch.manual_seed(hash((options.seed, state.step, group.rank)) & 0x7FFF_FFFF_FFFF_FFFF)

    # The captions to learn: the references, or captions sampled from the network.
    parts = []
    for batch in batches:
        batch = change_pictures(learner, batch.to(device))
        if learner.reward is not None:
            parts.append(drawn_captions(learner, learner.reward, batch))
        else:
            parts.append(true_captions(learner, batch, sampling))

    # The loss is the mean over all words of the step. So every worker needs the number of words of
    # all workers before the backward pass.
    sizes = [part.size.to(device) for part in parts] or [torch.zeros(2, device=device)]
    words, captions = group.sum(torch.stack(sizes).sum(0))

    # Forward and backward.
    counts = torch.zeros(len(COUNTED), device=device)
    for part in parts:
        with precision.autocast():
            loss, added = learner.part_loss(learner, part, words, captions)
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        counts += added
    if learner.synchronises:
        _join_batch_norms(learner, len(parts))

    # Update the weights.
    group.sum_gradients(learner.weights)
    learner.rates.apply(optimiser, state.epoch * learner.steps_per_epoch + state.step_of_epoch)
    scaler.unscale_(optimiser)
    if options.optimiser.clip:
        nn.utils.clip_grad_norm_(learner.weights, options.optimiser.clip, foreach=True)
    scaler.step(optimiser)
    scaler.update()
    optimiser.zero_grad()
    learner.average.update()
    return counts


def _join_batch_norms(learner: Learner, parts: int) -> None:
    """Run the encoder on no picture, forward and backward, where other workers have more parts in
    this step: their batch norms wait for all workers."""
    encoder, device = learner.network.encoder, learner.precision.device
    assert encoder is not None
    no_pixels = torch.zeros(0, 3, encoder.size, encoder.size, dtype=torch.uint8, device=device)
    for _ in range(learner.group.largest(parts, device) - parts):
        with learner.precision.autocast():
            grid, vector = encoder(no_pixels)
        learner.scaler.scale(grid.sum() + vector.sum()).backward()


class StepPart(NamedTuple):
    """A part of a step: pictures and the captions to learn."""

    pictures: Tensor  # as in `Batch`
    words: Tensor  # [B, R, T + 1] references, or [B, K, T] sampled captions
    size: Tensor  # [2] number of words, number of captions
    inputs: Tensor | None = None  # words to read instead of the true ones, in scheduled sampling
    rewards: Tensor | None = None  # [B, K] of sampled captions
    advantages: Tensor | None = None  # [B, K] of sampled captions


def change_pictures(learner: Learner, batch: Batch) -> Batch:
    """The batch with its pixels augmented, and encoded if the encoder is frozen. A batch of
    features is returned as it is."""
    options, pictures = learner.options.augmentation, batch.pictures
    if pictures.dtype == torch.uint8 and options.on:
        draws = torch.rand(len(batch.rows), DRAWS, device=learner.precision.device)
        pixels = augment(pictures.permute(0, 3, 1, 2), options, draws, batch.has_sides)
        pictures = pixels.permute(0, 2, 3, 1)
    with learner.precision.autocast():
        return batch._replace(pictures=learner.network.encode_if_frozen(pictures))


def true_captions(learner: Learner, batch: Batch, sampling: float) -> StepPart:
    """The references as the captions to learn. With scheduled sampling, some of the words that the
    decoder reads are replaced by its own."""
    words = batch.words
    size = torch.stack([(words[..., 1:] != PAD).sum(), (words[..., 1] != PAD).sum()]).float()
    if not sampling:
        return StepPart(batch.pictures, words, size)
    with torch.no_grad(), learner.precision.autocast():
        memory = learner.network.prepare(batch.pictures)
        decoder = learner.network.decoder
        inputs = scheduled_sampling_inputs(decoder, memory, words, sampling)
    return StepPart(batch.pictures, words, size, inputs)


def drawn_captions(learner: Learner, reward: CaptionReward, batch: Batch) -> StepPart:
    """Captions sampled from the network as the captions to learn, with their rewards."""
    network, options = learner.network, learner.options.self_critical
    seeds = torch.randint(2**62, (len(batch.rows),)).tolist()
    # Sampled without dropout, as in inference. The loss is computed with dropout.
    network.eval()
    with torch.no_grad(), learner.precision.autocast():
        memory = network.prepare(batch.pictures)
        drawn = draw_captions(network.decoder, memory, options, seeds)
    network.train()
    rewards = reward(drawn.cpu().numpy(), batch.words.cpu().numpy())
    captions = torch.tensor(rewards.size, device=drawn.device)
    return StepPart(
        batch.pictures,
        drawn,
        size=torch.stack([(drawn != PAD).sum(), captions]).float(),
        rewards=torch.from_numpy(rewards).to(drawn.device),
        advantages=torch.from_numpy(advantages(rewards)).to(drawn.device),
    )


def part_loss(
    learner: Learner, part: StepPart, words: Tensor, captions: Tensor
) -> tuple[Tensor, Tensor]:
    """The part's share of the loss, and its sums in the order of COUNTED. `words` and `captions`
    are the numbers of words and captions of the whole step, of all workers."""
    decoder, options = learner.network.decoder, learner.options
    features = learner.network.features(part.pictures)
    if part.rewards is None or part.advantages is None:
        if learner.teacher is not None:
            objective, teacher = options.objective, learner.teacher
            summed = distilled_loss(decoder, features, part.words, objective, teacher, part.inputs)
        else:
            memory = decoder.prepare(*features)
            summed = caption_loss(decoder, memory, part.words, options.objective, part.inputs)
        loss = summed.objective / words + summed.penalty / captions
        return loss, torch.cat([summed.counts, summed.counts.new_zeros(1)])
    memory = decoder.prepare(*features)
    temperature = options.self_critical.temperature
    likelihood, mask = log_likelihood(decoder, memory, part.words, temperature)
    advantage = part.advantages.unsqueeze(2).expand(mask.shape)[mask]  # [N]
    loss = -(advantage * likelihood).sum() / words
    no_correct = words.new_zeros(())
    added = [-likelihood.detach().sum(), no_correct, *part.size, part.rewards.sum()]
    return loss, torch.stack(added)
