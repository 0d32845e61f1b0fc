"""The options of a training run. The string under a field is its help text."""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from raycap.device import FloatName
from raycap.encoders import BatchNorm
from raycap.errors import UserError
from raycap.images.augmentation import Augmentation

# The score by which the best epoch is chosen: the lowest loss, or the highest of the others.
Measure = Literal["cider_d", "bleu_4", "rouge_l", "accuracy", "loss"]
Tracker = Literal["tensorboard", "mlflow", "wandb"]
DataMode = Literal["auto", "local", "stream"]


@dataclass(frozen=True)
class Objective:
    """The loss: cross-entropy over the words of the captions. Padding is never counted."""

    label_smoothing: float = 0.1
    """Share of the target that is spread over all words; 0 for plain cross-entropy."""
    attention_penalty: float = 0.0
    """Weight of the doubly stochastic penalty, which asks attention to look at each position of
    the grid about once per caption."""
    scheduled_sampling: float = 0.0
    """Probability in the last epoch that the decoder reads its own word instead of the true one;
    it grows linearly from 0 in the first epoch."""

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "scheduled_sampling"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"objective.{name} is {getattr(self, name)}: give a share from 0 to below 1"
                )
        if not (math.isfinite(self.attention_penalty) and self.attention_penalty >= 0):
            raise UserError(
                f"objective.attention_penalty is {self.attention_penalty}: give a weight, or 0 "
                "for none"
            )


@dataclass(frozen=True)
class Optimiser:
    """How the weights are updated."""

    kind: Literal["adam", "adamw"] = "adamw"
    """Adam, or AdamW, which applies weight decay apart from the gradient."""
    weight_decay: float = 1e-4
    """Weight decay of matrices; biases and scales are not decayed."""
    clip: float = 1.0
    """Largest norm of the gradient over all weights; 0 does not clip."""
    accumulate: int = 1
    """Process a batch in this many parts, one after the other, where it does not fit in memory."""
    averaging: float = 0.0
    """Keep a moving average of the weights with this decay (such as 0.999), and validate and save
    that; 0 for none."""

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise UserError(f"optimiser.accumulate is {self.accumulate}: give 1 or more parts")
        if not 0 <= self.averaging < 1:
            raise UserError(
                f"optimiser.averaging is {self.averaging}: give a decay below 1, or 0 for none"
            )
        for name in ("weight_decay", "clip"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise UserError(f"optimiser.{name} is {getattr(self, name)}: give 0 or more")


@dataclass(frozen=True)
class Schedule:
    """How learning rates change over a run."""

    kind: Literal["cosine", "plateau", "constant"] = "cosine"
    """After the warm-up: follow a cosine down, go down when validation no longer improves, or
    stay."""
    warmup: int = 200
    """Steps in which the rates rise from 0."""
    floor: float = 0.02
    """Where the rates end, as a share of the full rates."""
    factor: float = 0.5
    """Plateau: what the rates are multiplied by."""
    patience: int = 2
    """Plateau: epochs without a better validation before that."""

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.patience < 0:
            raise UserError(
                "schedule.warmup and schedule.patience count steps and epochs: give 0 or more"
            )
        if not (0 <= self.floor <= 1 and 0 < self.factor < 1):
            raise UserError(
                "schedule.floor is a share from 0 to 1, schedule.factor one between 0 and 1"
            )


@dataclass(frozen=True)
class Validation:
    """What happens after each epoch. Captions are written with the search of the run's `search`
    section."""

    best_by: Measure = "cider_d"
    """The captioner of the epoch that is best by this measure is kept."""
    patience: int = 0
    """Stop after this many epochs in a row without a better one; 0 never stops early."""
    batch: int = 64
    """Pictures at a time in each worker."""
    samples: int = 3
    """Sample captions shown after each epoch, each beside a reference."""
    padded_length: int = 0
    """Also log padded_loss and padded_accuracy as some notebooks compute them: over captions
    padded to this many words, where each padding is a word to be predicted; 0 for neither."""
    samples_every: int = 0
    """Also show sample captions every this many steps; 0 only after epochs."""

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"validation.batch is {self.batch}: give at least 1 picture")
        if min(self.patience, self.samples, self.samples_every, self.padded_length) < 0:
            raise UserError(
                "validation.patience, samples, samples_every and padded_length are counts: give 0 "
                "or more"
            )


@dataclass(frozen=True)
class Distillation:
    """Learning from another captioner besides the human captions: in the cross-entropy phase, for
    each word the probabilities that it would give to all words."""

    teacher: str = ""
    """Folder of that captioner, such as an ensemble of `raycap combine`; empty: none. It has the
    encoder of this run, which gets its vocabulary."""
    weight: float = 0.5
    """Share of the loss that is about its probabilities; the rest is about the true words."""
    temperature: float = 1.0
    """Both distributions are softened by this: above 1, unlikely words count for more."""

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise UserError(f"distillation.weight is {self.weight}: give a share above 0, up to 1")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(
                f"distillation.temperature is {self.temperature}: give more than 0, such as 1"
            )


@dataclass(frozen=True)
class SelfCritical:
    """Training on the metric itself, after cross-entropy and from its best epoch: captions are
    drawn, and those that score better than the picture's other draws become likelier."""

    epochs: int = 0
    """Epochs of it; 0 for none."""
    lr: float = 5e-5
    """Learning rate of the decoder; the other rates keep their proportion to train.lr."""
    samples: int = 5
    """Captions drawn for each picture; each is compared with the mean of the others."""
    temperature: float = 0.5
    """Temperature of the draws and of their likelihood. At 1, a captioner trained with label
    smoothing draws every tenth word at random, and learns first of all to write shorter
    captions."""
    bleu_4: float = 0.0
    """Weight of BLEU-4 (times 10, as CIDEr-D is) in the reward; CIDEr-D has the rest."""
    max_length: int = 20
    """Most words of a drawn caption, with its end."""

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise UserError(f"self_critical.epochs is {self.epochs}: give a count, or 0 for none")
        if self.samples < 2:
            raise UserError(
                f"self_critical.samples is {self.samples}: draws are compared, so give at least 2"
            )
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(
                f"self_critical.temperature is {self.temperature}: give more than 0, such as 0.5"
            )
        if not 0 <= self.bleu_4 <= 1:
            raise UserError(f"self_critical.bleu_4 is {self.bleu_4}: give a share from 0 to 1")
        if not self.lr > 0 or self.max_length < 2:
            raise UserError("self_critical.lr must be above 0, and max_length at least 2")


@dataclass(frozen=True)
class Lora:
    """What `--model` fine-tunes: small matrices beside the layers of the model (LoRA, by peft).
    The model's own weights stay as they are."""

    rank: int = 16
    """Rank of the matrices. More learn more, and take more memory."""
    alpha: float = 32.0
    """The change that they make is multiplied by alpha / rank."""
    dropout: float = 0.05
    """Dropout of what goes into them."""
    layers: str = ""
    """Which layers have them: a regular expression that fits the whole name of a layer. Empty: all
    linear layers of the language model"""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"lora.rank is {self.rank}: give at least 1, such as 16")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"lora.alpha is {self.alpha}: give more than 0, such as 32")
        if not 0 <= self.dropout < 1:
            raise UserError(f"lora.dropout is {self.dropout}: give a share from 0 to below 1")
        try:
            re.compile(self.layers)
        except re.error as error:
            raise UserError(
                f"lora.layers is {self.layers!r}, which is no regular expression ({error}): give "
                r"one such as .*language_model.*\.(q_proj|v_proj)"
            ) from error


# With `model`, these options have other values where nothing else is asked for: a model that
# describes pictures already needs fewer and smaller steps than one that begins with nothing.
FINE_TUNING = {
    "epochs": 3,
    "batch": 16,
    "lr": 2e-4,
    "log_steps": 10,
    "objective": {"label_smoothing": 0.0},
    "schedule": {"warmup": 20},
    "validation": {"batch": 16},
}


@dataclass(frozen=True)
class Workers:
    """The processes that train: how many, and on what."""

    count: int | None = None
    """Number of workers; none: one per GPU, or one where there is none. 0: train in this process,
    without Ray Train."""
    min: int | None = None
    """Elastic: the fewest workers, instead of count. The run goes on with fewer when a node is
    lost, and with more when one joins, from the last checkpoint."""
    max: int | None = None
    """Elastic: the most workers."""
    gpu: bool | None = None
    """Train on GPUs, one for each worker; none: where the cluster has some."""
    cpus: float = 0.5
    """CPUs that Ray reserves for each worker; the number of threads is set apart from it."""
    gpus: float = 1.0
    """GPUs that Ray reserves for each worker that trains on one; a share leaves room for other
    runs."""
    threads: int | None = None
    """Threads of each worker; none: the machine's CPUs, divided among its workers."""
    failures: int = 3
    """How often a lost worker is replaced; the run continues from the last checkpoint."""

    @property
    def is_elastic(self) -> bool:
        return self.min is not None or self.max is not None

    def __post_init__(self) -> None:
        if self.is_elastic and not (self.min and self.max and self.min <= self.max):
            raise UserError(
                f"workers.min is {self.min} and workers.max is {self.max}: give both, from 1 up"
            )
        if self.is_elastic and self.count is not None:
            raise UserError("workers.count is a fixed number: leave out workers.min and max")
        if self.count is not None and self.count < 0:
            raise UserError(
                f"workers.count is {self.count}: give 1 or more, or 0 to train in this process"
            )
        if not 0 < self.gpus <= 1:
            raise UserError(f"workers.gpus is {self.gpus}: give 1, or a share of one above 0")
        if self.cpus <= 0 or self.failures < 0 or (self.threads is not None and self.threads < 1):
            raise UserError(
                "workers.cpus must be above 0, workers.threads at least 1 and workers.failures at "
                "least 0"
            )


@dataclass(frozen=True)
class Train:
    """One training run."""

    out: str = "run"
    """Folder of the run: captioner, metrics, curve, checkpoints. The same command continues where
    it stopped."""
    fresh: bool = False
    """Start over, deleting the run that is in `out`."""
    dry_run: bool = False
    """Write nothing, and print what a run would be: shapes, parameters, memory, steps, and the
    time, estimated from some steps with made-up pictures on this machine."""
    limit: int | None = None
    """Only the first N pictures with captions of each split, to try a run."""
    max_steps: int | None = None
    """End the run after this many steps, with a validation. Learning rates are those of the whole
    run."""
    model: str = ""
    """A Hugging Face model to fine-tune, instead of a captioner to train: a folder, a name of the
    hub, or a short name such as smolvlm. --captioner.* are its options."""
    features: str = ""
    """A feature table that `raycap extract` made; empty: made from the source, and kept for later
    runs."""
    cache: str = ""
    """Folder for feature tables and unpacked rows, shared by all machines; empty:
    ~/.cache/raycap."""
    data: DataMode = "auto"
    """local: each machine unpacks the feature table to its disk. stream: workers read it while
    they train. auto: local if the unpacked table takes at most half of the free space of the
    cache's disk."""
    window: int | None = None
    """Pictures that are shuffled together, from row groups in random order; none: 2,048 where data
    is streamed, all pictures where it is local. The memory of all workers holds about as many
    pictures."""
    start_from: str = ""
    """A captioner folder whose vocabulary and weights (the encoder's too) to start from; or
    shipped, raycap's own."""
    training_splits: tuple[str, ...] = ("train",)
    """Splits to learn from (COCO by Karpathy's splits: train and restval)."""
    validation_split: str = "dev"
    """Split that each epoch is validated on."""
    epochs: int = 20
    """Passes over all pictures with all their captions, by cross-entropy."""
    batch: int = 32
    """Pictures per step, each with all its captions, over all workers together."""
    lr: float = 5e-4
    """Learning rate of the decoder."""
    embedding_lr: float | None = None
    """Learning rate of the word embeddings; none: the decoder's."""
    encoder_lr: float = 1e-5
    """Learning rate of the encoder, where it is trainable."""
    batch_norm: BatchNorm = "auto"
    """Statistics of the batch norms in trained layers of the encoder: frozen (those of its
    weights), trained (of the pictures of a step in each worker), synchronised (of the whole step,
    over all workers), or auto: trained where the whole encoder is, else frozen."""
    cache_frozen_stages: bool = True
    """With encoder.trainable last: encode the frozen stages once, as features, and run only the
    last stage at every step (convolutional encoders of torchvision, without augmentation at every
    step). For ResNet-50 this takes 400 KB a picture instead of 150 KB."""
    seed: int = 0
    """Seed of all random choices: weights, order, dropout, samples."""
    precision: FloatName = "auto"
    """Number format of the arithmetic: auto takes what the device has in hardware."""
    tf32: bool = False
    """On GPUs with tensor cores (Ampere and newer), compute products of fp32 numbers in TF32:
    faster, with 10 bits instead of 23 behind the point."""
    compile: bool = False
    """Compile the forward and backward pass with torch.compile; of decoders with recurrent cells
    and attention, the cell. The first steps take longer; it needs a C++ compiler."""
    checkpoint_minutes: float = 0.0
    """Also save within an epoch, this many minutes after the last save; 0 saves only after
    epochs, and with elastic workers every 5 minutes."""
    log_steps: int = 50
    """Write a line to metrics.jsonl every this many steps."""
    neighbours: int = 100_000
    """Most training photos that the captioner remembers, with their captions, for
    search.consensus and the column unfamiliar; 0 for none."""
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    """Where figures go besides metrics.jsonl; mlflow and wandb need the extras of that name."""
    data_name: str = ""
    """What the model card calls the data."""
    data_licence: str = ""
    """What the model card says of the data's licence."""
    lora: Lora = field(default_factory=Lora)
    objective: Objective = field(default_factory=Objective)
    optimiser: Optimiser = field(default_factory=Optimiser)
    schedule: Schedule = field(default_factory=Schedule)
    validation: Validation = field(default_factory=Validation)
    distillation: Distillation = field(default_factory=Distillation)
    self_critical: SelfCritical = field(default_factory=SelfCritical)
    augmentation: Augmentation = field(default_factory=Augmentation)
    workers: Workers = field(default_factory=Workers)

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.epochs + self.self_critical.epochs < 1:
            raise UserError(
                f"train.epochs is {self.epochs}: give at least 1, or self_critical.epochs and "
                "start_from"
            )
        for name in ("limit", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(
                    f"train.{name} is {value}: give at least 1, or leave it out for no limit"
                )
        if self.epochs == 0 and not self.start_from:
            raise UserError(
                "train.epochs is 0, and self-critical training needs a captioner: give "
                "train.start_from"
            )
        if self.neighbours < 0:
            raise UserError(
                f"train.neighbours is {self.neighbours}: give a number of photos, or 0 for none"
            )
        if self.batch < 1:
            raise UserError(f"train.batch is {self.batch}: give at least 1 picture")
        if self.window is not None and self.window < 1:
            raise UserError(
                f"train.window is {self.window}: give a number of pictures, such as 2048, or "
                "leave it out"
            )
        for name in ("lr", "encoder_lr", "embedding_lr"):
            rate = getattr(self, name)
            if rate is not None and not (math.isfinite(rate) and rate > 0):
                raise UserError(
                    f"train.{name} is {rate}: give more than 0; a part that must not learn is "
                    "frozen by its own option (encoder.trainable, decoder.embedding_trainable)"
                )
        if self.log_steps < 1 or self.checkpoint_minutes < 0:
            raise UserError(
                "train.log_steps must be at least 1 and train.checkpoint_minutes at least 0"
            )
        if self.batch_norm == "synchronised" and self.objective.scheduled_sampling:
            raise UserError(
                "train.batch_norm is synchronised, which does not go together with "
                "objective.scheduled_sampling: give frozen or trained, or scheduled_sampling 0"
            )
        if self.distillation.teacher and not self.epochs:
            raise UserError(
                "train.distillation is a part of the cross-entropy phase, and train.epochs is 0: "
                "give a number of epochs, or leave out distillation.teacher"
            )
        if self.self_critical.epochs and self.validation.best_by in ("loss", "accuracy"):
            raise UserError(
                f"validation.best_by is {self.validation.best_by}, which self-critical training "
                "makes worse while captions get better: its epochs would never be kept; give "
                "cider_d, bleu_4 or rouge_l, or self_critical.epochs 0"
            )
        if not self.training_splits or not self.validation_split:
            raise UserError("train.training_splits and train.validation_split must name splits")
        if self.validation_split in self.training_splits:
            raise UserError(
                f"the split {self.validation_split} is in train.training_splits and is "
                "train.validation_split: use it for one of them"
            )
        workers = self.workers.count or self.workers.max
        if workers and self.batch < workers:
            raise UserError(f"train.batch is {self.batch}: {workers} workers need a picture each")
