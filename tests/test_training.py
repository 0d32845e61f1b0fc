"""Training without Ray: batches, losses, optimisers, resume, and errors."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from feature_tables import (
    POSITIONS,
    WIDTH,
    features,
    pictures_of,
    source_rows,
    store_of,
    write,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from small_captioner import save_captioner

from raycap import Captioner
from raycap.captioners.trained import CaptionerPlan
from raycap.config import loads
from raycap.decoders import DECODERS, Recurrent, TopDown, Transformer
from raycap.decoders.decoder import Decoder
from raycap.decoders.teacher_forcing import decoder_inputs, loss_by_picture, score_padding
from raycap.device import choose_precision
from raycap.encoders import Pixels
from raycap.encoders.encoder import Encoder
from raycap.errors import UserError
from raycap.images.augmentation import DRAWS, augment, draws_of, names_sides
from raycap.metrics import DocumentFrequencies
from raycap.schema import tensor_column, tensors_of
from raycap.search import Beam, Greedy, Sample
from raycap.sources import Table
from raycap.storage import RunFolder
from raycap.storage.training_log import METRICS, read_epochs, read_log
from raycap.training import (
    Augmentation,
    Objective,
    Optimiser,
    Schedule,
    SelfCritical,
    Train,
    Validation,
    Workers,
    checkpoint,
    loop,
    step,
)
from raycap.training.dataset import CaptionDataset, read_ahead
from raycap.training.display import CURVE, TRACKERS, RunDisplay, open_tracker
from raycap.training.distributed import WorkerGroup
from raycap.training.loss import (
    attention_penalty,
    caption_loss,
    scheduled_sampling_inputs,
)
from raycap.training.network import Network
from raycap.training.optimiser import LearningRates, WeightAverage
from raycap.training.run_files import STOP
from raycap.training.self_critical import CaptionReward, advantages, draw_captions, log_likelihood
from raycap.training.setup import TrainingSetup
from raycap.training.store import (
    CAPTION_COLUMNS,
    PictureStore,
    PictureTables,
    open_store,
    read_captions,
    unpack_table,
    write_listing,
)
from raycap.training.validation import ATTENTION_PICTURES
from raycap.vocabulary import END, PAD, START, UNK, Vocabulary, VocabularyOptions

SMALL = {"hidden_width": 24, "embedding_width": 16, "output_dropout": 0.0}
DECODER_CHOICES = [
    Recurrent(**SMALL, attention_width=16),
    Recurrent(**SMALL, cell="gru", attention="none", layers=2, output_layers=(64, 64)),
    TopDown(**SMALL, attention_width=16, projection_width=16),
    Transformer(**SMALL, layers=1, heads=2, layer_dropout=0.0),
]
CPU = choose_precision("cpu", "fp32")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PictureStore:
    folder = tmp_path_factory.mktemp("tables")
    return store_of(write(folder / "table", features(48)), folder / "cache")


@pytest.fixture(scope="module")
def vocabulary(store: PictureStore) -> Vocabulary:
    captions = [
        caption
        for references in store.captions["references"].to_pylist()
        for caption in references
    ]
    return Vocabulary.build(captions, VocabularyOptions(min_count=1))


def dataset(store: PictureStore, vocabulary: Vocabulary, split: str = "train") -> CaptionDataset:
    return CaptionDataset(store, store.rows_of(split), vocabulary)


def network(options: object, vocabulary: Vocabulary) -> Network:
    torch.manual_seed(0)
    return Network(options.build(len(vocabulary), POSITIONS, WIDTH), None)


# Rows and batches


def test_a_store_holds_what_the_table_held(store: PictureStore) -> None:
    table, rows = features(48), source_rows(48)
    columns = {"key": "path", "split": "part", "references": "references"}
    assert list(columns) == CAPTION_COLUMNS
    for column, name in columns.items():
        assert store.captions[column].to_pylist() == [row[name] for row in rows]
    grids, vectors = tensors_of(table, "grid"), tensors_of(table, "vector")
    assert np.array_equal(store.rows[:, :-1], grids)
    assert np.array_equal(store.rows[:, -1], vectors)


def test_a_table_is_unpacked_once_and_a_changed_one_anew(tmp_path: Path) -> None:
    table, cache = write(tmp_path / "table", features(8)), tmp_path / "cache"
    unpack_table(table, cache)
    [folder] = (cache / "rows").iterdir()
    before_that = (folder / "rows.bin").stat().st_mtime_ns
    unpack_table(table, cache)
    assert (folder / "rows.bin").stat().st_mtime_ns == before_that
    shutil.rmtree(table)
    write(Path(table), features(12))
    assert len(unpack_table(table, cache)[0]) == 12


def test_failed_rows_and_rows_without_captions_are_not_learned_from(tmp_path: Path) -> None:
    table = features(12)
    status = ["failed_to_decode" if number == 1 else "success" for number in range(12)]
    table = table.set_column(table.column_names.index("status"), "status", [status])
    rows = source_rows(12)
    rows[3]["references"] = []
    opened = store_of(write(tmp_path / "table", table, rows), tmp_path / "cache")
    learned = {opened.key(place) for place in opened.rows_of("train", "dev")}
    assert learned == set(table["key"].to_pylist()) - {"0001.png", "0003.png"}


def test_a_folder_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no feature table.*raycap extract"):
        unpack_table(str(tmp_path), tmp_path / "cache")


@pytest.mark.parametrize("older", [1, 2])
def test_a_table_of_an_older_format_is_refused(older: int, tmp_path: Path) -> None:
    table = features(2)
    if older == 1:
        table = table.append_column("references", [[["a dog"], ["a cat"]]])
    else:
        grids = pa.FixedShapeTensorArray.from_numpy_ndarray(tensors_of(table, "grid"))
        table = table.set_column(table.schema.get_field_index("grid"), "grid", grids)
    with pytest.raises(UserError, match=r"older version.*make it again with `raycap extract`"):
        unpack_table(write(tmp_path / "table", table), tmp_path / "cache")


def test_a_batch_holds_each_caption_and_is_cut_to_the_longest(
    store: PictureStore, vocabulary: Vocabulary
) -> None:
    learned = dataset(store, vocabulary)
    batch = learned.batch(learned.rows[:5])
    lengths = []
    for row, place in enumerate(learned.rows[:5]):
        decoded = [
            vocabulary.decode(caption[1:])
            for caption in batch.words[row].tolist()
            if caption[0] == START
        ]
        assert decoded == store.references(place)
        lengths += [len(caption.split()) for caption in decoded]
        assert torch.equal(batch.pictures[row], torch.from_numpy(np.array(store.rows[place])))
    assert batch.words.shape[2] == max(lengths) + 2


@settings(max_examples=20)
@given(batch=st.integers(1, 50), ranks=st.integers(1, 4), epoch=st.integers(0, 3))
def test_an_epoch_is_every_picture_once_however_many_share_it(
    store: PictureStore, vocabulary: Vocabulary, batch: int, ranks: int, epoch: int
) -> None:
    learned = dataset(store, vocabulary)
    alone = list(learned.shares(epoch, 7, batch, 0, 1))
    assert len(alone) == learned.steps_per_epoch(batch)
    assert sorted(np.concatenate(alone)) == sorted(learned.rows)
    together = [list(learned.shares(epoch, 7, batch, rank, ranks)) for rank in range(ranks)]
    for number, whole in enumerate(alone):
        assert sorted(np.concatenate([own[number] for own in together])) == sorted(whole)


def test_a_table_made_anew_has_the_same_epochs(vocabulary: Vocabulary, tmp_path: Path) -> None:
    """Rows may be in another order, as workers finish them; a seed gives the same pictures."""
    epochs = []
    for order in (np.arange(24), np.random.default_rng(1).permutation(24)):
        table = write(tmp_path / f"table-{order[0]}", features(24).take(order))
        store = store_of(table, tmp_path / "cache")
        learned = CaptionDataset(store, store.rows_of("train"), vocabulary)
        epochs.append(
            [[store.key(place) for place in step] for step in learned.shares(2, 7, 4, 0, 1)]
        )
    assert epochs[0] == epochs[1]


def test_what_is_learned_is_what_the_source_holds_now(tmp_path: Path) -> None:
    """A table is kept for later runs; meanwhile captions and splits change, and pictures go."""
    table = write(tmp_path / "table", features(4))
    lines = [
        "path,caption,part",
        "0002.png,mended,dev",
        "0000.png,as it was,train",
        "9999.png,not encoded,train",
    ]
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    source = Table(
        str(tmp_path / "mine.csv"), split_column="part", references=("auto",), key_column="path"
    )
    assert write_listing(source, tmp_path / "listing") == {"train": 2, "dev": 1}
    pictures = PictureTables((table,), str(tmp_path / "listing"))
    store = open_store(pictures, tmp_path / "cache")
    found = [
        [(store.key(place), store.references(place)) for place in store.rows_of(split)]
        for split in ("train", "dev")
    ]
    assert found == [[("0000.png", ["as it was"])], [("0002.png", ["mended"])]]
    splits = [split for rows in read_captions(pictures) for split in rows["split"].to_pylist()]
    assert sorted(splits) == ["dev", "train"]


def test_a_picture_is_seen_as_itself_or_as_one_of_its_views(
    vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """Views come in another order, and one has lost a picture."""
    table = features(12)
    grids = tensors_of(table, "grid")
    written = [write(tmp_path / "plain", table)]
    for number, order in enumerate((np.arange(12)[::-1], np.arange(11)), start=1):
        changed = tensor_column((grids + number).astype(np.float16))
        place = table.schema.get_field_index("grid")
        view = table.set_column(place, table.schema.field("grid"), changed).take(order)
        written.append(write(tmp_path / f"view-{number}", view))
    store = open_store(pictures_of(*written), tmp_path / "cache")
    for number in range(36):
        view, place = divmod(number, 12)
        shown = store.pictures(np.array([number]))[0, :-1]
        expected = grids[place] + (0 if (view, place) == (2, 11) else view)
        assert np.array_equal(shown, expected.astype(np.float16))
    learned = dataset(store, vocabulary)
    epochs = [np.concatenate(list(learned.shares(epoch, 0, 4, 0, 1))) for epoch in range(30)]
    assert all(sorted(epoch % 12) == sorted(learned.rows) for epoch in epochs)
    # Of 30 looks at 9 pictures.
    assert np.all(np.bincount(np.concatenate(epochs) // 12, minlength=3) > 60)
    assert learned.batch(np.array([13])).rows.tolist() == [1]
    assert (
        learned.batch(np.array([13])).words.tolist() == learned.batch(np.array([1])).words.tolist()
    )


WALK = """
import sys
from pathlib import Path
from raycap.training.dataset import CaptionDataset
from raycap.training.store import PictureTables, open_store
from raycap.vocabulary import Vocabulary, VocabularyOptions
store = open_store(PictureTables((sys.argv[1],), sys.argv[2]), Path(sys.argv[3]))
vocabulary = Vocabulary.build(["a red dog"], VocabularyOptions(min_count=1))
dataset = CaptionDataset(store, store.rows_of("train"), vocabulary)
for share in dataset.shares(0, 0, 32, 0, 1):
    dataset.batch(share)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("RssAnon")))
"""


@pytest.mark.thorough
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux, which reports memory by kind"
)
def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    """As lists, 20,000 pictures with captions took 26 MB more than 500 pictures; mapped, 2 MB."""
    kilobytes = []
    for count in (500, 20_000):
        table = write(tmp_path / str(count), features(count))
        pictures = pictures_of(table)
        open_store(pictures, tmp_path / "cache")
        walk = [sys.executable, "-c", WALK, table, pictures.listing, str(tmp_path / "cache")]
        done = subprocess.run(walk, capture_output=True, text=True, check=True)
        kilobytes.append(int(done.stdout))
    assert kilobytes[1] - kilobytes[0] < 6_000, kilobytes


def quadrants() -> torch.Tensor:
    """Four colours: [3, 8, 8] of uint8."""
    values = torch.tensor([[0, 80], [160, 240]], dtype=torch.uint8)
    return values.repeat_interleave(4, 0).repeat_interleave(4, 1).expand(3, 8, 8)


def test_a_picture_is_mirrored_unless_its_captions_name_sides() -> None:
    pixels, draws = quadrants().repeat(3, 1, 1, 1), torch.full((3, DRAWS), 0.1)
    draws[1, 4] = 0.9
    sides = names_sides([["a dog"], ["a dog"], ["a dog", "the man on the LEFT waves"]])
    plain, again, with_sides = augment(pixels, Augmentation(flip=True), draws, sides)
    assert torch.equal(plain, quadrants().flip(2))
    assert torch.equal(again, quadrants()) and torch.equal(with_sides, quadrants())
    assert not names_sides([["a bright light", "an upright man was leftover"]])[0]


def test_a_crop_shows_a_part_at_the_old_size() -> None:
    # Half a side, to the left and below.
    draws = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.5, 0.5, 0.0]])
    part, whole = augment(
        quadrants().repeat(2, 1, 1, 1), Augmentation(crop=0.5), draws, torch.zeros(2) > 0
    )
    assert torch.equal(part[:, 1:, :7], torch.full((3, 7, 7), 160, dtype=torch.uint8))
    assert torch.equal(whole, quadrants())


def test_a_view_shows_a_picture_always_alike() -> None:
    first, second = draws_of(["a.jpg", "b.jpg"], 1), draws_of(["b.jpg", "a.jpg"], 2)
    assert torch.equal(first, draws_of(["b.jpg", "a.jpg"], 1).flip(0))
    assert len({tuple(row.tolist()) for row in torch.cat([first, second])}) == 4
    assert first.min() >= 0 and first.max() < 1


def test_each_epoch_has_another_order(store: PictureStore, vocabulary: Vocabulary) -> None:
    learned = dataset(store, vocabulary)
    first, second, again = (
        np.concatenate(list(learned.shares(epoch, 0, 4, 0, 1))) for epoch in (0, 1, 0)
    )
    assert not np.array_equal(first, second)
    assert np.array_equal(first, again)


def test_what_is_read_ahead_comes_in_order_and_errors_come_out() -> None:
    assert list(read_ahead(range(9), lambda number: number * number)) == [
        number * number for number in range(9)
    ]
    with pytest.raises(ZeroDivisionError):
        list(read_ahead([1, 0], lambda number: 1 / number))


# The loss


@pytest.mark.parametrize("options", DECODER_CHOICES, ids=lambda options: type(options).__name__)
def test_the_loss_is_the_mean_over_true_words(
    options: object, store: PictureStore, vocabulary: Vocabulary
) -> None:
    """Beside a plain loop over single captions, without padding."""
    net, learned = network(options, vocabulary).eval(), dataset(store, vocabulary)
    batch = learned.batch(learned.rows[:6])
    counted = caption_loss(
        net.decoder, net.prepare(batch.pictures), batch.words, Objective(label_smoothing=0.1)
    )
    surprise, smoothed, right, words = 0.0, 0.0, 0, 0
    for row, place in enumerate(learned.rows[:6]):
        for caption in learned.captions(place):
            numbers = torch.tensor(caption).view(1, 1, -1)
            scores, _ = net.decoder(net.prepare(batch.pictures[row : row + 1]), numbers[..., :-1])
            following = numbers[0, 0, 1:]
            cross_entropy = torch.nn.functional.cross_entropy
            scores = scores.detach()
            surprise += float(cross_entropy(scores[0, 0], following, reduction="sum"))
            smoothed += float(
                cross_entropy(scores[0, 0], following, reduction="sum", label_smoothing=0.1)
            )
            right += int((scores[0, 0].argmax(1) == following).sum())
            words += len(following)
    captions = sum(len(store.references(place)) for place in learned.rows[:6])
    assert counted.counts.tolist() == pytest.approx([surprise, right, words, captions], rel=1e-4)
    assert counted.objective.item() == pytest.approx(smoothed, rel=1e-4)
    each = loss_by_picture(net.decoder, net.prepare(batch.pictures), batch.words)
    assert each.sum(0).tolist() == pytest.approx(counted.counts[:3].tolist(), rel=1e-4)
    for row in range(6):
        alone = loss_by_picture(
            net.decoder, net.prepare(batch.pictures[row : row + 1]), batch.words[row : row + 1]
        )
        assert alone[0].tolist() == pytest.approx(each[row].tolist(), rel=1e-4)


def test_padding_changes_neither_loss_nor_gradients(
    store: PictureStore, vocabulary: Vocabulary
) -> None:
    options = Objective(label_smoothing=0.0, attention_penalty=1.0)
    learned = dataset(store, vocabulary)
    batch = learned.batch(learned.rows[:4])
    wider = torch.nn.functional.pad(batch.words, (0, 5, 0, 2), value=PAD)
    gradients = []
    for words in (batch.words, wider):
        net = network(DECODER_CHOICES[0], vocabulary)
        counted = caption_loss(net.decoder, net.prepare(batch.pictures), words, options)
        (counted.objective + counted.penalty).backward()
        gradients.append(
            torch.cat(
                [weight.grad.flatten() for weight in net.parameters() if weight.grad is not None]
            )
        )
    assert torch.allclose(*gradients, atol=1e-5)


def test_attention_that_looks_once_at_each_place_has_no_penalty() -> None:
    once = torch.eye(4).view(1, 1, 4, 4)  # four words, each at another place
    true = torch.ones(1, 1, 4, dtype=torch.bool)
    assert float(attention_penalty(once, true)) == 0
    stuck = torch.zeros(1, 1, 4, 4)
    stuck[..., 0] = 1
    assert float(attention_penalty(stuck, true)) == pytest.approx((9 + 1 + 1 + 1) / 4)


def test_words_are_read_up_to_the_last_and_never_the_end() -> None:
    words = torch.tensor([[[START, 7, 8, END, PAD], [START, 7, 8, 9, END]]])
    assert decoder_inputs(words).tolist() == [[[START, 7, 8, PAD], [START, 7, 8, 9]]]


def test_scheduled_sampling_reads_true_words_own_words_or_some_of_both(
    store: PictureStore, vocabulary: Vocabulary
) -> None:
    net, learned = network(DECODER_CHOICES[0], vocabulary).eval(), dataset(store, vocabulary)
    batch = learned.batch(learned.rows)
    memory = net.prepare(batch.pictures)
    true = decoder_inputs(batch.words)
    assert torch.equal(scheduled_sampling_inputs(net.decoder, memory, batch.words, 0.0), true)
    torch.manual_seed(0)
    half, own = (
        scheduled_sampling_inputs(net.decoder, memory, batch.words, chance)
        for chance in (0.5, 0.999)
    )
    inner = true[..., 1:] != PAD
    shares = [
        float((read[..., 1:] != true[..., 1:])[inner].float().mean()) for read in (half, own)
    ]
    assert 0.2 < shares[0] < 0.6 < shares[1]
    for read in (half, own):
        assert torch.equal(read == PAD, true == PAD)
        assert bool((read[..., 0] == true[..., 0]).all())


# Optimisers and learning rates


def test_rates_rise_then_fall_along_a_cosine() -> None:
    rates = LearningRates(Schedule(warmup=10, floor=0.1), steps=110)
    shares = [rates.share(step) for step in range(110)]
    assert shares[:11] == sorted(shares[:11]) and shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[10] == pytest.approx(1.0) and shares[-1] == pytest.approx(0.1, abs=0.01)


def test_rates_fall_on_a_plateau_only() -> None:
    rates = LearningRates(Schedule(kind="plateau", warmup=0, factor=0.5, patience=1), steps=100)
    seen = []
    for better in (True, False, False, True, False, False):
        rates.epoch_validated(better)
        seen.append(rates.share(50))
    assert seen == [1, 1, 0.5, 0.5, 0.5, 0.25]


def test_an_average_follows_its_formula_and_swaps_back() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    layer.register_buffer("statistic", torch.zeros(()))  # such as a batch norm's
    layer.register_buffer("count", torch.zeros((), dtype=torch.int64))
    frozen = torch.nn.Linear(1, 1).requires_grad_(False)
    average = WeightAverage(
        torch.nn.ModuleDict({"layer": layer, "frozen": frozen}), Optimiser(averaging=0.5)
    )
    expected = 0.0
    for number in range(1, 5):
        with torch.no_grad():
            layer.weight.fill_(float(number))
            layer.statistic.fill_(10.0 * number)
            layer.count.fill_(number)
        average.update()
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * number
    average.swap()
    assert layer.weight.item() == pytest.approx(expected)
    assert layer.statistic.item() == pytest.approx(10 * expected)
    assert layer.count.item() == 4
    average.swap()
    assert layer.weight.item() == 4 and layer.statistic.item() == 40
    assert set(average.tensors()) == {"layer.weight", "layer.statistic", "layer.count"}


# Self-critical training


def test_advantages_sum_to_nothing_and_compare_with_the_others() -> None:
    rewards = np.array([[1.0, 0.0, 0.5], [2.0, 2.0, 2.0]])
    assert advantages(rewards)[0].tolist() == [0.75, -0.75, 0.0]
    assert np.allclose(advantages(rewards).sum(1), 0)


@torch.no_grad()
def test_padding_is_scored_where_the_caption_ends(
    store: PictureStore, vocabulary: Vocabulary
) -> None:
    """As a notebook counts it: the last output is asked for PAD, once for each padding."""
    learned = dataset(store, vocabulary)
    batch = learned.batch(learned.rows[:5])
    for options in DECODER_CHOICES:
        net = network(options, vocabulary).eval()
        memory = net.prepare(batch.pictures)
        logits, _ = net.decoder(memory, decoder_inputs(batch.words))
        expected = np.zeros(3)
        for picture, captions in enumerate(batch.words.tolist()):
            for number, words in enumerate(captions):
                length = sum(word != PAD for word in words[1:])
                if length:
                    last = logits[picture, number, length - 1]
                    missing = max(0, 12 - length)
                    expected += missing * np.array(
                        [-last.log_softmax(0)[PAD].item(), last.argmax().item() == PAD, 1]
                    )
        found = score_padding(net.decoder, memory, batch.words, 12)
        assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
        assert score_padding(net.decoder, memory, batch.words, 1).tolist() == [0, 0, 0]


@pytest.mark.thorough
def test_padded_figures_count_every_padding(
    store: PictureStore, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    """Padding is never learned, so it makes the loss higher and the accuracy lower."""
    train = options(epochs=1, validation=Validation(padded_length=30))
    run(store, vocabulary, tmp_path, train)
    for line in read_epochs(tmp_path / "metrics.jsonl"):
        assert line["padded_loss"] > line["validation_loss"]
        assert 0 < line["padded_accuracy"] < line["accuracy"] / 2


@pytest.mark.slow
def test_a_compiled_step_learns_what_a_plain_one_learns(
    store: PictureStore, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    losses = []
    for compiled in (False, True):
        critical = SelfCritical(epochs=1, samples=2, max_length=8)
        train = options(epochs=2, compile=compiled, tf32=compiled, self_critical=critical)
        run(store, vocabulary, tmp_path / str(compiled), train)
        losses.append(
            [line["validation_loss"] for line in read_epochs(tmp_path / str(compiled) / METRICS)]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.thorough
def test_tf32_is_only_for_the_runs_that_ask_for_it(
    store: PictureStore, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    for tf32, precision in ((True, "high"), (False, "highest")):
        run(store, vocabulary, tmp_path / precision, options(epochs=1, max_steps=1, tf32=tf32))
        assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize("decoder", DECODER_CHOICES, ids=lambda options: type(options).__name__)
def test_drawn_words_are_as_likely_as_when_they_were_drawn(
    decoder: object, store: PictureStore, vocabulary: Vocabulary
) -> None:
    net, learned = network(decoder, vocabulary).eval(), dataset(store, vocabulary)
    batch = learned.batch(learned.rows[:6])
    options = SelfCritical(samples=4, max_length=8, temperature=1.0)
    with torch.no_grad():
        memory = net.prepare(batch.pictures)
        drawn = draw_captions(net.decoder, memory, options, list(range(6)))
        found = Sample(samples=4, max_length=8).search(net.decoder, memory, seeds=list(range(6)))
        likely, true = log_likelihood(net.decoder, memory, drawn)
    assert not {START, UNK} & set(drawn.flatten().tolist())
    total = torch.zeros(true.shape).masked_scatter_(true, likely).sum(2)
    # The search gives the model's own probability, of which forbidden words have a share.
    assert bool((total >= found.log_probability - 1e-4).all())


def test_a_low_temperature_draws_and_counts_likely_words(
    store: PictureStore, vocabulary: Vocabulary
) -> None:
    net, learned = network(DECODER_CHOICES[0], vocabulary).eval(), dataset(store, vocabulary)
    batch = learned.batch(learned.rows[:6])
    surprises = []
    for temperature in (1.0, 0.05):
        options = SelfCritical(samples=4, max_length=8, temperature=temperature)
        with torch.no_grad():
            memory = net.prepare(batch.pictures)
            drawn = draw_captions(net.decoder, memory, options, list(range(6)))
            surprises.append(-log_likelihood(net.decoder, memory, drawn, temperature)[0].mean())
    assert surprises[1] < surprises[0] / 2


def test_a_reference_is_rewarded_most_and_a_cut_one_less(
    store: PictureStore, vocabulary: Vocabulary
) -> None:
    learned = dataset(store, vocabulary)
    place = next(int(place) for place in learned.rows if len(store.references(place)) == 3)
    true = learned.captions(place)[1][1:]
    captions = np.full((1, 3, len(true)), PAD)
    captions[0, 0] = true
    captions[0, 1, :-3] = true[:-3]
    captions[0, 2, 0] = END
    for bleu_4 in (0.0, 0.5, 1.0):
        frequencies = DocumentFrequencies.counted(map(learned.captions, learned.rows))
        reward = CaptionReward(frequencies, SelfCritical(bleu_4=bleu_4))
        rewards = reward(captions, learned.batch(np.array([place])).words.numpy())[0]
        assert rewards[0] > rewards[2] >= 0
        # BLEU alone is content with words of one reference and the length of another.
        if bleu_4 < 1:
            assert rewards[0] > rewards[1] > rewards[2]


# Whole runs


def options(**changed: object) -> Train:
    usual = {"epochs": 3, "batch": 8, "lr": 0.02, "schedule": Schedule(warmup=2), "log_steps": 2}
    return Train(**{**usual, **changed})  # type: ignore[arg-type]


def run(
    store: PictureStore,
    vocabulary: Vocabulary,
    out: Path,
    train: Train,
    decoder: object = DECODER_CHOICES[2],
    report: Any = None,
) -> bool:
    """A whole run in this process; False when it was stopped before its end. `report` is called
    with the log line of each epoch."""
    plan = CaptionerPlan(
        encoder=Pixels(size=32, patch=16, frequencies=2),
        decoder=decoder,  # type: ignore[arg-type]
        search=Greedy(max_length=12),
    )
    out.mkdir(parents=True, exist_ok=True)
    encoder = plan.encoder.build()
    assert (encoder.positions, encoder.width) == (POSITIONS, WIDTH)
    setup = TrainingSetup(
        plan, train, vocabulary, encoder, PictureTables(("a table",), "a listing")
    )
    return loop.train_captioner(setup, store, RunFolder(str(out)), CPU, WorkerGroup(), report)


@pytest.mark.parametrize(
    "decoder",
    [
        pytest.param(
            choice,
            id=type(choice).__name__,
            marks=() if choice in DECODER_CHOICES[1::2] else pytest.mark.thorough,
        )
        for choice in DECODER_CHOICES
    ],
)
def test_every_decoder_learns_by_heart(
    decoder: object, store: PictureStore, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    train = options(epochs=20, lr=0.03, objective=Objective(label_smoothing=0.0))
    run(store, vocabulary, tmp_path, train, decoder)
    curve = read_epochs(tmp_path / "metrics.jsonl")
    assert len(curve) == 20
    # Three captions of one picture begin alike: no captioner knows which is asked for.
    assert curve[-1]["training_loss"] < 0.35 < 1.5 < curve[0]["training_loss"]
    assert curve[-1]["cider_d"] > 4 > 1 > curve[0]["cider_d"]
    assert (tmp_path / "captioner" / "config.json").exists()


def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(
    store: PictureStore, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything that has a state: dropout, sampling, averaging, both phases, a plateau."""
    decoder = dataclasses.replace(DECODER_CHOICES[2], output_dropout=0.3)
    train = options(
        epochs=2,
        objective=Objective(scheduled_sampling=0.3),
        optimiser=Optimiser(averaging=0.9, accumulate=2),
        schedule=Schedule(kind="plateau", warmup=2, patience=0),
        self_critical=SelfCritical(epochs=1, samples=2, max_length=8),
    )
    assert run(store, vocabulary, tmp_path / "whole", train, decoder)
    stops = 0
    for _ in range(40):
        _stop_after(monkeypatch, tmp_path / "pieces", steps=2)
        if run(store, vocabulary, tmp_path / "pieces", train, decoder):
            break
        (tmp_path / "pieces" / STOP).unlink()
        stops += 1
    assert stops > 3
    monkeypatch.undo()
    assert (tmp_path / "pieces" / "metrics.jsonl").exists()
    whole, pieces = (
        [_timeless(line) for line in read_epochs(tmp_path / name / "metrics.jsonl")]
        for name in ("whole", "pieces")
    )
    assert len(whole) == 3
    assert pieces == whole
    weights = [
        (tmp_path / name / "captioner" / "model.safetensors").read_bytes()
        for name in ("whole", "pieces")
    ]
    assert weights[0] == weights[1]


def _stop_after(monkeypatch: pytest.MonkeyPatch, out: Path, steps: int) -> None:
    """Ask the run in `out` to stop while it makes its `steps`-th step."""
    left = [steps]

    def counted(*arguments: Any) -> torch.Tensor:
        left[0] -= 1
        if left[0] == 0:
            (out / STOP).touch()
        return step.train_step(*arguments)

    monkeypatch.setattr(loop, "train_step", counted)


def _timeless(line: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in line.items() if "seconds" not in name}


def test_parts_of_a_batch_learn_what_the_batch_learns(
    store: PictureStore, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    losses = []
    for accumulate in (1, 3):
        train = options(epochs=2, optimiser=Optimiser(accumulate=accumulate))
        run(store, vocabulary, tmp_path / str(accumulate), train)
        curve = read_epochs(tmp_path / str(accumulate) / "metrics.jsonl")
        losses.append(
            [line[name] for line in curve for name in ("training_loss", "validation_loss")]
        )
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_best_epoch_is_kept_and_patience_ends_a_run(
    store: PictureStore, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    train = options(epochs=40, lr=0.05, validation=Validation(best_by="loss", patience=2))
    run(store, vocabulary, tmp_path, train)
    curve = read_epochs(tmp_path / "metrics.jsonl")
    assert len(curve) < 40
    best = min(curve, key=lambda line: line["validation_loss"])
    assert best["epoch"] == len(curve) - 2
    facts = json.loads((tmp_path / "captioner" / "config.json").read_text())["facts"]
    assert facts["training"]["epoch"] == best["epoch"]
    pictures = read_log(tmp_path / "validation.jsonl")
    assert [picture["key"] for picture in pictures] == [
        store.key(place) for place in store.rows_of("dev")
    ]
    assert np.mean([picture["cider_d"] for picture in pictures]) == pytest.approx(best["cider_d"])
    looked = [picture for picture in pictures if "attention" in picture]
    assert len(looked) == min(ATTENTION_PICTURES, len(pictures))
    for picture in looked:
        assert " ".join(picture["words"]) == picture["caption"]
        assert np.sum(picture["attention"], axis=1) == pytest.approx(1, abs=1e-3)
        assert np.shape(picture["attention"]) == (len(picture["words"]), POSITIONS)


def test_self_critical_training_raises_the_reward(
    store: PictureStore, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    critical = SelfCritical(epochs=12, lr=1e-2, samples=4, max_length=10)
    train = options(epochs=10, self_critical=critical)
    run(store, vocabulary, tmp_path, train)
    rewards = [
        line["reward"]
        for line in read_epochs(tmp_path / "metrics.jsonl")
        if line["phase"] == "self_critical"
    ]
    assert len(rewards) == 12
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.2


def test_a_captioner_is_started_from(
    store: PictureStore, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    run(store, vocabulary, tmp_path / "first", options(epochs=6))
    captioner = str(tmp_path / "first" / "captioner")
    train = options(
        epochs=0, start_from=captioner, self_critical=SelfCritical(epochs=1, max_length=8)
    )
    run(store, vocabulary, tmp_path / "second", train)
    first, second = (
        read_epochs(tmp_path / name / "metrics.jsonl") for name in ("first", "second")
    )
    assert [line["phase"] for line in second] == ["self_critical"]
    card = [
        (tmp_path / name / "captioner" / "README.md").read_text() for name in ("first", "second")
    ]
    assert f"started from: {captioner}" in card[1] and "started from" not in card[0]
    assert second[0]["validation_loss"] < first[0]["validation_loss"] - 0.5


def test_a_frozen_encoder_looks_at_a_picture_once_in_a_step(
    store: PictureStore, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changed again at every step, drawn for and learned from: all of one look."""
    squares = np.random.default_rng(0).integers(256, size=(len(store), 32, 32, 3), dtype=np.uint8)
    looked: list[int] = []
    forward = Encoder.forward

    def counting(own: Encoder, pixels: torch.Tensor) -> object:
        looked.append(len(pixels))
        return forward(own, pixels)

    def counted(*arguments: Any) -> torch.Tensor:
        with monkeypatch.context() as changed:
            changed.setattr(Encoder, "forward", counting)
            return step.train_step(*arguments)

    monkeypatch.setattr(loop, "train_step", counted)
    critical = SelfCritical(epochs=1, samples=2, max_length=8)
    train = options(epochs=1, self_critical=critical, augmentation=Augmentation(flip=True))
    run(PictureStore(squares, store.captions), vocabulary, tmp_path, train)
    assert sum(looked) == 2 * len(store.rows_of("train"))


def test_only_two_checkpoints_are_kept(
    store: PictureStore, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    run(store, vocabulary, tmp_path, options(epochs=4))
    kept = sorted(path.name for path in (tmp_path / checkpoint.FOLDER).iterdir())
    last = read_log(tmp_path / "metrics.jsonl")[-1]["step"]
    assert len(kept) == 2 and kept[-1] == f"step-{last:09}"


# Errors


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Train(epochs=0), "start_from"),
        (lambda: Train(batch=2, workers=Workers(count=3)), "3 workers"),
        (lambda: Train(training_splits=("dev",)), "dev"),
        (lambda: Train(lr=0.0), "lr"),
        (lambda: SelfCritical(samples=1), "at least 2"),
        (lambda: Objective(label_smoothing=1.0), "label_smoothing"),
        (lambda: Optimiser(accumulate=0), "accumulate"),
        (lambda: Train(limit=0), "train.limit"),
        (lambda: Train(max_steps=0), "train.max_steps"),
        *(
            (
                lambda measure=measure: Train(
                    self_critical=SelfCritical(epochs=1), validation=Validation(best_by=measure)
                ),
                f"best_by is {measure}.*cider_d",
            )
            for measure in ("loss", "accuracy")
        ),
        (lambda: Augmentation(views=2), "crop or flip"),
    ],
)
def test_impossible_options_are_refused(make: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("value", [False, True])
def test_a_removed_option_is_ignored_at_its_default_and_else_refused(
    value: bool, tmp_path: Path
) -> None:
    """In a config, and in the folder of a captioner that an earlier version trained."""
    save_captioner(tmp_path / "captioner")
    file = tmp_path / "captioner" / "config.json"
    saved = json.loads(file.read_text())
    saved["decoder"]["scaled_words"] = value
    content = {name: part for name, part in saved.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    saved["sha256"]["config.json"] = digest
    file.write_text(json.dumps(saved))
    text = f"decoder: {{kind: top_down, scaled_words: {value}}}"
    if not value:
        assert loads(text).decoder == TopDown()
        assert Captioner.load(tmp_path / "captioner").caption([]) == []
        return
    for call in (lambda: loads(text), lambda: Captioner.load(tmp_path / "captioner")):
        with pytest.raises(
            UserError, match=r"decoder\.scaled_words is True.*no longer has that option"
        ):
            call()


def test_a_tracker_that_is_not_installed_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    with pytest.raises(UserError, match=r"raycap\[wandb\]"):
        open_tracker("wandb", tmp_path, "run")


class Unreachable:
    """A tracker whose server goes away after the first figures, or was never there."""

    def __init__(self, out: Path, name: str) -> None:
        if out.name == "never":
            raise ConnectionError("no route to tracker.example")
        self.heard = 0

    def add(self, step: int, figures: dict[str, float]) -> None:
        self.heard += 1
        if self.heard > 1:
            raise ConnectionError("gone")

    def close(self) -> None:
        raise AssertionError("what was given up is not closed")


def test_a_tracker_that_fails_is_refused_before_and_given_up_during_a_run(
    store: PictureStore, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "mlflow", Unreachable)
    with pytest.raises(UserError, match=r"mlflow cannot be opened.*no route to tracker.example"):
        open_tracker("mlflow", tmp_path / "never", "run")
    with RunDisplay(RunFolder(str(tmp_path)), ["mlflow"]):
        run(store, vocabulary, tmp_path, options(epochs=2))
    assert (tmp_path / CURVE).exists()


def test_every_decoder_is_tried_here() -> None:
    assert {type(options) for options in DECODER_CHOICES} == set(DECODERS.values())
    assert all(
        isinstance(
            network(options, Vocabulary.build(["a"], VocabularyOptions(min_count=1))).decoder,
            Decoder,
        )
        for options in DECODER_CHOICES
    )
    assert Beam().width  # the default search of a run
