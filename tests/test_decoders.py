"""Decoders: unroll equals repeated steps, captions share a picture, and each variant can learn."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from raycap.decoders import DECODERS, Recurrent, TopDown, Transformer
from raycap.decoders.decoder import Decoder
from raycap.decoders.transformer import TransformerDecoder
from raycap.errors import UserError
from raycap.search import Greedy
from raycap.vocabulary import END, PAD, START

POSITIONS, WIDTH, VOCABULARY = 5, 96, 30

SMALL = {"hidden_width": 32, "embedding_width": 24, "output_dropout": 0.0}
VARIANTS = {
    "lstm": Recurrent(**SMALL, attention_width=16),
    "lstm_three_layers_gate_deep_tied": Recurrent(
        **SMALL,
        attention_width=16,
        layers=3,
        gated_context=True,
        deep_output=True,
        tied_words=True,
    ),
    "gru_both_entrances_projected": Recurrent(
        **SMALL,
        attention_width=16,
        cell="gru",
        layers=2,
        vector_enters="both",
        projection_width=10,
    ),
    "gru_multi_head_normalised": Recurrent(
        **SMALL,
        cell="gru",
        attention="multi_head",
        attention_width=16,
        heads=4,
        normalise_picture=True,
    ),
    "gru_attention_alone_gated": Recurrent(
        **SMALL, cell="gru", attention_width=16, vector_enters="nowhere", gated_context=True
    ),
    "lstm_plain_first_input": Recurrent(
        **SMALL, attention="none", layers=2, vector_enters="first_input"
    ),
    "gru_plain_initial_state": Recurrent(**SMALL, attention="none", cell="gru", tied_words=True),
    "lstm_plain_deep": Recurrent(
        **SMALL, attention="none", vector_enters="both", deep_output=True, normalise_picture=True
    ),
    "top_down": TopDown(**SMALL, attention_width=16, projection_width=16),
    "top_down_multi_head": TopDown(
        **SMALL, attention="multi_head", attention_width=16, projection_width=0
    ),
    "transformer": Transformer(**SMALL | {"layer_dropout": 0.0}, layers=2, heads=4),
    "transformer_tied": Transformer(
        **SMALL | {"layer_dropout": 0.0}, layers=1, heads=2, tied_words=True
    ),
}
# One of each kind of decoder, cell and attention.
QUICK_TO_LEARN = (
    "lstm",
    "gru_attention_alone_gated",
    "gru_plain_initial_state",
    "top_down",
    "transformer",
)
variants = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())


def built(options, seed=0, embeddings=None) -> Decoder:
    torch.manual_seed(seed)
    return options.build(VOCABULARY, POSITIONS, WIDTH, embeddings)


def pictures(count, seed=1):
    source = torch.Generator().manual_seed(seed)
    grid = torch.randn(count, POSITIONS, WIDTH, generator=source)
    return grid, grid.mean(1)


def captions(pictures, references, seed=2):
    """Random words after `<start>` [B, R, T], and the next word of each, with `<end>`."""
    source = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (pictures, references), generator=source)
    words = torch.randint(4, VOCABULARY, (pictures, references, 8), generator=source)
    place = torch.arange(8)
    words = words.masked_fill(place >= lengths.unsqueeze(2), PAD)
    following = torch.where(place == lengths.unsqueeze(2), END, words)
    before = torch.cat([torch.full_like(words[..., :1], START), words[..., :-1]], 2)
    return before, following


@variants
def test_teacher_forcing_is_the_step_repeated(options):
    decoder = built(options).eval()
    memory = decoder.prepare(*pictures(4))
    words, following = captions(4, 3)
    scores, attention = decoder(memory, words)
    state = decoder.initial_state(memory, 3)
    for place in range(words.shape[2]):
        step = decoder.step(words[:, :, place], state, memory)
        state, true = step.state, following[:, :, place] != PAD
        torch.testing.assert_close(
            step.logits[true], scores[:, :, place][true], atol=1e-5, rtol=1e-5
        )
        if attention is not None:
            torch.testing.assert_close(
                step.attention[true], attention[:, :, place][true], atol=1e-5, rtol=1e-5
            )


@variants
def test_attention_is_a_distribution_over_the_grid(options):
    decoder = built(options).eval()
    words, following = captions(3, 2)
    _, attention = decoder(decoder.prepare(*pictures(3)), words)
    if getattr(options, "attention", "") == "none":
        assert attention is None
        return
    assert attention.shape == (*words.shape, POSITIONS)
    total = attention.sum(-1)[following != PAD]
    torch.testing.assert_close(total, torch.ones_like(total))


@variants
def test_a_caption_does_not_depend_on_its_batch_or_its_neighbours(options):
    decoder = built(options).eval()
    grid, vector = pictures(5)
    words, following = captions(5, 4)
    whole, _ = decoder(decoder.prepare(grid, vector), words)
    for b, r in ((0, 0), (3, 2), (4, 3)):
        alone, _ = decoder(
            decoder.prepare(grid[b : b + 1], vector[b : b + 1]), words[b : b + 1, r : r + 1]
        )
        true = following[b, r] != PAD
        torch.testing.assert_close(alone[0, 0][true], whole[b, r][true], atol=1e-5, rtol=1e-5)


@variants
def test_the_picture_is_seen(options):
    decoder = built(options).eval()
    words, _ = captions(2, 1)
    first, _ = decoder(decoder.prepare(*pictures(2, seed=1)), words)
    other, _ = decoder(decoder.prepare(*pictures(2, seed=9)), words)
    assert (first - other).abs().max() > 1e-3


@variants
def test_what_comes_later_changes_nothing_before(options):
    decoder = built(options).eval()
    memory = decoder.prepare(*pictures(1))
    words = torch.tensor([[[START, 5, 6, 7, 8, 9]]])
    changed = words.clone()
    changed[..., 4:] = 11
    torch.testing.assert_close(
        decoder(memory, words)[0][:, :, :4], decoder(memory, changed)[0][:, :, :4]
    )


def train(decoder, grid, vector, words, following, steps, enough=0.03):
    """Adam on the true words only; the last loss."""
    true = following != PAD
    rate = 3e-3 if isinstance(decoder, TransformerDecoder) else 1e-2
    optimiser = torch.optim.Adam(decoder.parameters(), rate, fused=True)
    for _ in range(steps):
        outputs = decoder.unroll(decoder.prepare(grid, vector), words).outputs
        loss = functional.cross_entropy(decoder.logits(outputs[true]), following[true])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(decoder.parameters(), 5.0)
        optimiser.step()
        if loss < enough:
            break
    return loss.item()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            options, id=name, marks=() if name in QUICK_TO_LEARN else pytest.mark.thorough
        )
        for name, options in VARIANTS.items()
    ],
)
def test_learns_captions_and_writes_them_again(options):
    """Pictures, each with the same caption twice, which greedy search can learn."""
    decoder = built(options)
    grid, vector = pictures(5)
    words, following = (part.repeat(1, 2, 1) for part in captions(5, 1))
    assert train(decoder, grid, vector, words, following, steps=300) < 0.03
    decoder.eval()
    found = Greedy(max_length=9).search(decoder, decoder.prepare(grid, vector)).hypotheses()
    expected = [
        tuple(word for word in row.tolist() if word not in (PAD, END)) for row in following[:, 0]
    ]
    assert [hypotheses[0].words for hypotheses in found] == expected


@variants
def test_every_parameter_is_trained(options):
    decoder = built(options)
    words, following = captions(3, 2)
    scores, _ = decoder(decoder.prepare(*pictures(3)), words)
    functional.cross_entropy(scores[following != PAD], following[following != PAD]).backward()
    idle = [
        name
        for name, part in decoder.named_parameters()
        if part.grad is None or not part.grad.any()
    ]
    assert idle == []


@variants
def test_a_saved_decoder_is_the_same_and_holds_each_weight_once(options):
    decoder, other = built(options, seed=0).eval(), built(options, seed=1).eval()
    weights = decoder.state_dict()
    assert len({part.data_ptr() for part in weights.values()}) == len(weights)
    other.load_state_dict(weights)
    words, _ = captions(2, 2)
    grid, vector = pictures(2)
    torch.testing.assert_close(
        other(other.prepare(grid, vector), words), decoder(decoder.prepare(grid, vector), words)
    )


@variants
def test_float16_features_are_read_as_they_lie_in_tables(options):
    decoder = built(options).eval()
    grid, vector = (part.half() for part in pictures(2))
    words, _ = captions(2, 1)
    half, _ = decoder(decoder.prepare(grid, vector), words)
    whole, _ = decoder(decoder.prepare(grid.float(), vector.float()), words)
    torch.testing.assert_close(half, whole)


def has_lstm_in_bfloat16() -> bool:
    with torch.autocast("cpu", torch.bfloat16):
        try:
            torch.nn.LSTM(8, 8)(torch.zeros(2, 2, 8))
        except RuntimeError:
            return False
    return True


@variants
def test_trains_in_bfloat16(options):
    if not has_lstm_in_bfloat16():
        pytest.skip("torch has no LSTM in bfloat16 for this processor: it needs AVX-512")
    decoder = built(options)
    words, following = captions(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        scores, _ = decoder(decoder.prepare(*pictures(3)), words)
    whole, _ = decoder(decoder.prepare(*pictures(3)), words)
    true = following != PAD
    torch.testing.assert_close(scores[true].float(), whole[true], atol=0.1, rtol=0.1)
    functional.cross_entropy(scores[true].float(), following[true]).backward()
    assert all(part.grad.isfinite().all() for part in decoder.parameters())


def test_embeddings_that_also_score_words_begin_small():
    decoder = built(TopDown(embedding_width=64, tied_words=True)).eval()
    embedded = decoder.embed(torch.arange(VOCABULARY)).std().item()
    weights = decoder.embedding.weight.std().item()
    assert weights < 0.06
    assert embedded == pytest.approx(weights)


@pytest.mark.parametrize("kind", DECODERS)
def test_given_word_vectors_are_taken_and_kept_when_frozen(kind):
    matrix = np.random.default_rng(0).normal(size=(VOCABULARY, 24)).astype(np.float32)
    options = DECODERS[kind](**SMALL, embedding_trainable=False)
    decoder = built(options, embeddings=matrix)
    np.testing.assert_array_equal(decoder.embedding.weight.detach().numpy(), matrix)
    words, _ = captions(2, 1)
    decoder(decoder.prepare(*pictures(2)), words)[0].sum().backward()
    assert decoder.embedding.weight.grad is None
    with pytest.raises(UserError, match="embedding_width to 20"):
        built(options, embeddings=matrix[:, :20])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_cells_are_torchs_own(cell):
    """Without context, the cells equal nn.LSTM and nn.GRU with the same weights."""
    plain = built(Recurrent(**SMALL, attention="none", cell=cell)).eval()
    attentive = built(Recurrent(**SMALL, cell=cell, attention_width=16)).eval()
    theirs = plain.recurrence.state_dict()
    with torch.no_grad():
        attentive.context_input.weight.zero_()
        attentive.word_input.weight.copy_(theirs["weight_ih_l0"])
        attentive.word_input.bias.copy_(theirs["bias_ih_l0"])
        attentive.cells[0].recurring.weight.copy_(theirs["weight_hh_l0"])
        attentive.cells[0].recurring.bias.copy_(theirs["bias_hh_l0"])
    shared = {
        name: part
        for name, part in plain.state_dict().items()
        if not name.startswith("recurrence")
    }
    attentive.load_state_dict(shared, strict=False)
    words, following = captions(3, 2)
    ours, _ = attentive(attentive.prepare(*pictures(3)), words)
    expected, _ = plain(plain.prepare(*pictures(3)), words)
    true = following != PAD
    torch.testing.assert_close(ours[true], expected[true], atol=1e-5, rtol=1e-5)


def test_lstms_begin_by_remembering():
    for options in (VARIANTS["lstm"], VARIANTS["top_down"]):
        biases = [
            part
            for name, part in built(options).named_parameters()
            if name.endswith("recurring.bias")
        ]
        assert biases and all((bias.chunk(4)[1] == 1).all() for bias in biases)
    plain = built(VARIANTS["lstm_plain_first_input"]).recurrence
    assert (plain.bias_hh_l1.chunk(4)[1] + plain.bias_ih_l1.chunk(4)[1] == 1).all()


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (Recurrent, {"layers": 4}, "layers"),
        (Recurrent, {"attention": "none", "vector_enters": "nowhere"}, "would not be seen"),
        (Recurrent, {"attention": "none", "gated_context": True}, "gated_context"),
        (Recurrent, {"attention": "none", "projection_width": 400}, "projection_width"),
        (
            Recurrent,
            {"attention": "multi_head", "attention_width": 10, "heads": 4},
            "multiple of heads",
        ),
        (TopDown, {"attention_width": 0}, "attention_width"),
        (Transformer, {"hidden_width": 30, "heads": 4}, "multiple of heads"),
        (Transformer, {"layers": 0}, "layers"),
        (TopDown, {"output_dropout": 1.0}, "output_dropout"),
        (Recurrent, {"embedding_width": 0}, "embedding_width"),
    ],
)
def test_impossible_options_are_refused(kind, wrong, message):
    with pytest.raises(UserError, match=message):
        kind(**wrong)
