"""Learning the word probabilities of another captioner."""

from pathlib import Path

import pytest
import torch
from feature_tables import POSITIONS, WIDTH, features, store_of, write
from small_captioner import save_captioner
from torch import Tensor

from raycap.captioners.trained import CaptionerPlan
from raycap.decoders import Recurrent
from raycap.decoders.decoder import Decoder
from raycap.decoders.teacher_forcing import decoder_inputs
from raycap.encoders import Pixels, ResNet18
from raycap.errors import UserError
from raycap.training import Distillation, Objective, Train
from raycap.training.dataset import Batch, CaptionDataset
from raycap.training.distillation import Teacher, check_teacher, distilled_loss, read_teacher
from raycap.training.loss import caption_loss
from raycap.training.setup import check_options
from raycap.vocabulary import PAD, Vocabulary, VocabularyOptions

torch.set_num_threads(1)
OBJECTIVE = Objective(label_smoothing=0.1, attention_penalty=0.2)


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    folder = tmp_path_factory.mktemp("tables")
    store = store_of(write(folder / "table", features(24)), folder / "cache")
    texts = [one for own in store.captions["references"].to_pylist() for one in own]
    vocabulary = Vocabulary.build(texts, VocabularyOptions(min_count=1))
    dataset = CaptionDataset(store, store.rows_of("train"), vocabulary)
    return dataset.batch(dataset.rows)


def decoder(batch: Batch, seed: int, hidden: int = 16) -> Decoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = Recurrent(
            hidden_width=hidden, embedding_width=8, attention_width=8, output_dropout=0.0
        )
        built = options.build(int(batch.words.max()) + 1, POSITIONS, WIDTH)
        with torch.no_grad():
            built.vocabulary_bias.normal_()  # so that the two disagree
        return built


def both(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.pictures[:, :-1].float(), batch.pictures[:, -1].float()


def divergence(student: Decoder, teacher: Decoder, batch: Batch) -> Tensor:
    """Of the teacher's word probabilities from the student's, mean over the words."""
    inputs, mask = decoder_inputs(batch.words), batch.words[..., 1:] != PAD
    logs = [
        one(one.prepare(*both(batch)), inputs)[0][mask].log_softmax(1)
        for one in (student, teacher)
    ]
    return (logs[1].exp() * (logs[1] - logs[0])).sum(1).mean()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_loss_is_that_of_the_true_words_and_of_the_teachers(
    batch: Batch, temperature: float
) -> None:
    student, other = decoder(batch, 0), decoder(batch, 1, hidden=24)
    teacher = Teacher(other, Distillation("teacher", 0.3, temperature))
    found = distilled_loss(student, both(batch), batch.words, OBJECTIVE, teacher)
    plain = caption_loss(student, student.prepare(*both(batch)), batch.words, OBJECTIVE)
    inputs, mask = decoder_inputs(batch.words), batch.words[..., 1:] != PAD
    ours, theirs = (
        (one(one.prepare(*both(batch)), inputs)[0][mask] / temperature).log_softmax(1)
        for one in (student, other)
    )
    learned = -(theirs.exp() * ours).sum() * temperature**2
    assert torch.allclose(found.objective, 0.7 * plain.objective + 0.3 * learned, rtol=1e-4)
    assert torch.allclose(found.penalty, plain.penalty)
    assert torch.allclose(found.counts, plain.counts)


def test_a_student_comes_to_agree_with_its_teacher(batch: Batch) -> None:
    student, other = decoder(batch, 0), decoder(batch, 1, hidden=24)
    teacher = Teacher(other, Distillation("teacher", 1.0))
    optimiser = torch.optim.Adam(student.parameters(), 0.02)
    before = divergence(student, other, batch)
    for _ in range(25):
        optimiser.zero_grad()
        loss = distilled_loss(student, both(batch), batch.words, OBJECTIVE, teacher)
        loss.objective.backward()
        optimiser.step()
    assert divergence(student, other, batch) < 0.1 * before
    assert all(weight.grad is None for weight in other.parameters())


def test_a_teacher_with_other_words_or_another_encoder_is_refused(tmp_path: Path) -> None:
    captioner = save_captioner(tmp_path / "teacher")
    options = Distillation(str(tmp_path / "teacher"))
    plan, encoder, vocabulary = captioner.plan, captioner.encoder, captioner.vocabulary
    check_teacher(options, plan, encoder, vocabulary)
    found = read_teacher(options, torch.device("cpu")).decoder.state_dict()
    for name, weight in captioner.decoder.state_dict().items():
        assert torch.equal(found[name], weight)
    other = Vocabulary.build(["a cat"], VocabularyOptions(min_count=1))
    with pytest.raises(UserError, match="knows other words"):
        check_teacher(options, plan, encoder, other)
    with pytest.raises(UserError, match="has another encoder"):
        smaller = CaptionerPlan(encoder=Pixels(size=32))
        check_teacher(options, smaller, smaller.encoder.build(), vocabulary)
    with pytest.raises(UserError, match="this run trains its own"):
        check_options(
            CaptionerPlan(encoder=ResNet18(trainable="last")), Train(distillation=options)
        )
    with pytest.raises(UserError, match=r"train\.epochs is 0"):
        Train(epochs=0, start_from="x", distillation=options)
