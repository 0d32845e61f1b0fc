"""One step of fine-tuning. The result does not depend on the number of workers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from raycap.captioners.huggingface.given_words import NO_WORD, Scored
from raycap.device import Precision
from raycap.training.checkpoint import TrainState, optimiser_tensors, restore_optimiser
from raycap.training.distributed import WorkerGroup
from raycap.training.fine_tuning.adapter import AdaptedModel
from raycap.training.fine_tuning.pictures import CaptionedPicture
from raycap.training.optimiser import OPTIMISERS, LearningRates
from raycap.training.options import Train
from raycap.training.step import COUNTED


class AdapterLearner:
    """The adapter with its optimiser and schedule."""

    def __init__(
        self,
        model: AdaptedModel,
        options: Train,
        steps_per_epoch: int,
        precision: Precision,
        group: WorkerGroup,
    ) -> None:
        self.model, self.options = model, options
        self.precision, self.group = precision, group
        self.steps_per_epoch = steps_per_epoch
        self.weights = list(model.weights.values())
        groups = [{"params": self.weights, "lr": options.lr, "full_lr": options.lr}]
        self.optimiser = OPTIMISERS[options.optimiser.kind](  # type: ignore[call-arg]
            groups, weight_decay=options.optimiser.weight_decay, fused=True
        )
        self.rates = LearningRates(options.schedule, options.epochs * steps_per_epoch)
        is_fp16 = precision.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(precision.device.type, enabled=is_fp16)

    @property
    def lr(self) -> float:
        """The learning rate in the last step."""
        return float(self.optimiser.param_groups[0]["lr"])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that training changes, for a checkpoint."""
        return {**self.model.tensors(), **optimiser_tensors(self.optimiser)}

    def numbers(self) -> dict[str, Any]:
        """The rest of the state, for the JSON file of a checkpoint."""
        return {"pace": self.rates.state(), "scaler": self.scaler.state_dict()}

    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Load the state from `tensors` and `numbers` of a checkpoint."""
        self.model.restore(tensors)
        restore_optimiser(self.optimiser, tensors)
        self.rates.restore(numbers["pace"])
        self.scaler.load_state_dict(numbers["scaler"])


def tune_step(
    learner: AdapterLearner, batches: Sequence[Sequence[CaptionedPicture]], state: TrainState
) -> Tensor:
    """One update of the adapter, from this worker's share of a step. Returns its sums, in the
    order of COUNTED.

    `batches` are the parts of the share, for gradient accumulation. In a small last step a worker
    may have none.
    """
    options, group, precision = learner.options, learner.group, learner.precision
    optimiser, scaler, given_words = learner.optimiser, learner.scaler, learner.model.given_words

    # The random numbers of a step depend on its number alone: a run that continues needs no saved
    # generators.
    torch.manual_seed(hash((options.seed, state.step, group.rank)) & 0x7FFF_FFFF_FFFF_FFFF)

    # Pictures of other shapes may need batches of their own.
    parts = [
        ([batch[place] for place in places], [tokens[place] for place in places])
        for batch in batches
        for tokens in [[given_words.tokens(example.caption) for example in batch]]
        for places in given_words.together([example.pixels for example in batch])
    ]

    # The loss is the mean over all words of the step, of all workers.
    words = torch.tensor(float(sum(len(each) for _, tokens in parts for each in tokens)))
    words = group.sum(words.to(precision.device))

    # Forward and backward.
    learner.model.train()
    counts = torch.zeros(len(COUNTED), device=precision.device)
    for examples, tokens in parts:
        with precision.autocast():
            scored = given_words([example.pixels for example in examples], tokens)
        objective, added = word_loss(scored, options.objective.label_smoothing)
        scaler.scale(objective / words).backward()  # type: ignore[no-untyped-call]
        counts += added
    learner.model.train(False)

    # Update the weights.
    group.sum_gradients(learner.weights)
    learner.rates.apply(optimiser, state.epoch * learner.steps_per_epoch + state.step_of_epoch)
    scaler.unscale_(optimiser)
    if options.optimiser.clip:
        nn.utils.clip_grad_norm_(learner.weights, options.optimiser.clip, foreach=True)
    scaler.step(optimiser)
    scaler.update()
    optimiser.zero_grad()
    return counts


def word_loss(scored: Scored, label_smoothing: float) -> tuple[Tensor, Tensor]:
    """The loss, summed over the words, and the sums in the order of COUNTED."""
    is_word = scored.words != NO_WORD
    logits, words = scored.logits[is_word].float(), scored.words[is_word]  # [N, V], [N]
    loss = functional.cross_entropy(
        logits, words, reduction="sum", label_smoothing=label_smoothing
    )
    with torch.no_grad():
        cross_entropy = functional.cross_entropy(logits, words, reduction="sum")
        correct = (logits.argmax(-1) == words).sum()
    captions, no_reward = words.new_tensor(len(scored.words)), words.new_zeros(())
    counts = [cross_entropy, correct, is_word.sum(), captions, no_reward]
    return loss, torch.stack([count.float() for count in counts])
