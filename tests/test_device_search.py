"""The search for devices: the captions of the one for processors, and nothing that a CUDA graph
could not repeat. All of it runs on a processor, but for the last tests."""

import logging
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decoders import VARIANTS, built, pictures
from test_search import beams, opinionated, words_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from raycap.errors import UserError
from raycap.search import Beam, Greedy, device
from raycap.search.beam import beam_search
from raycap.search.device import LOOK_EVERY, SHAPES_KEPT, DeviceBeam, device_search
from raycap.search.sampling import generate
from raycap.vocabulary import END

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# Operators whose result the host has to wait for.
WAITS = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "equal",
    "is_nonzero",
    "masked_select",
    "unique",
}
# Operators that launch nothing.
VIEWS = {
    *("view", "_unsafe_view", "t", "transpose", "permute", "unsqueeze", "squeeze", "expand"),
    *("slice", "select", "split", "unbind", "unfold", "detach", "alias"),
}
RULES = Beam(width=3, best=3, min_length=2, no_repeat_ngram=2, no_stutter=True, max_length=12)


def seldom(names, *usual):
    """All names; those that are not usual are for thorough runs."""
    return [
        name if name in usual else pytest.param(name, marks=pytest.mark.thorough) for name in names
    ]


def talkative(name, seed=0):
    """A decoder of each kind, with captions that depend on the picture and end at different
    times."""
    decoder = built(VARIANTS[name], seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
        decoder.vocabulary_bias[END] += 0.5
    return decoder.double().eval()


@torch.no_grad()
def memory_of(decoder, count, seed=1):
    return decoder.prepare(*pictures(count, seed))


def bonus_for(count, vocabulary, seed=5):
    source = torch.Generator().manual_seed(seed)
    return 3 * torch.rand(count, vocabulary, generator=source) ** 4


def check_equal(found, expected, attention=False):
    for ours, theirs in zip(found.hypotheses(), expected.hypotheses(), strict=True):
        assert words_of(ours) == words_of(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert one.score == pytest.approx(other.score, abs=1e-5)
            assert one.log_probability == pytest.approx(other.log_probability, abs=1e-5)
            if attention and other.attention is not None:
                torch.testing.assert_close(one.attention, other.attention)


# -------------------------------------------------------------------------------- captions


@settings(derandomize=True)
@given(beams, st.integers(0, 10_000), st.integers(5, 24), st.floats(-4, 4), st.booleans())
def test_the_captions_are_those_of_the_search_for_processors(
    options, seed, vocabulary, end, has_bonus
):
    decoder = opinionated(seed=seed, vocabulary=vocabulary, end=end).double()
    memory = memory_of(decoder, 4)
    bonus = bonus_for(4, vocabulary, seed) if has_bonus else None
    given = {"attention": False, "word_bonus": bonus}
    found = device_search(options, decoder, memory, **given)
    check_equal(found, beam_search(options, decoder, memory, **given))


@pytest.mark.parametrize("name", seldom(VARIANTS, "lstm", "top_down", "transformer"))
def test_every_decoder_is_served(name):
    decoder = talkative(name)
    memory = memory_of(decoder, 6)
    found = device_search(RULES, decoder, memory, attention=True)
    expected = beam_search(RULES, decoder, memory, attention=True)
    assert len({len(one.words) for each in expected.hypotheses() for one in each}) > 1
    check_equal(found, expected, attention=True)


@pytest.mark.parametrize("rules", [{}, {"no_repeat_ngram": 1, "min_length": 4}], ids=str)
def test_greedy_search_is_a_beam_of_one(rules, monkeypatch):
    decoder = opinionated().double()
    memory = memory_of(decoder, 8)
    greedy = Greedy(**rules)
    expected = generate(greedy, decoder, memory)
    monkeypatch.setenv("RAYCAP_SEARCH", "device")
    check_equal(greedy.search(decoder, memory), expected)


def test_the_device_of_the_memory_decides_or_the_environment(monkeypatch):
    decoder = opinionated()
    memory, searched = memory_of(decoder, 2), []
    monkeypatch.setattr(DeviceBeam, "search", lambda *_: searched.append(1))
    Beam().search(decoder, memory)
    assert not searched
    monkeypatch.setenv("RAYCAP_SEARCH", "device")
    Beam().search(decoder, memory)
    assert searched == [1]
    # Random numbers and casts of weights could not be repeated.
    with torch.autocast("cpu", torch.bfloat16):
        Beam().search(decoder, memory)
    Beam().search(decoder.train(), memory)
    assert searched == [1]
    monkeypatch.setenv("RAYCAP_SEARCH", "gpu")
    with pytest.raises(UserError, match="device or processor"):
        Beam().search(decoder, memory)


def test_a_result_is_not_changed_by_the_next_batch():
    decoder = opinionated()
    first = device_search(RULES, decoder, memory_of(decoder, 3, seed=1), attention=True)
    before = [part.clone() for part in first[:5]]
    device_search(RULES, decoder, memory_of(decoder, 3, seed=2), attention=True)
    assert all(torch.equal(part, was) for part, was in zip(first[:5], before, strict=True))


def test_batches_in_inference_mode_and_outside_of_it_share_their_tensors():
    decoder = opinionated()
    expected = beam_search(RULES, decoder, memory_of(decoder, 3), attention=False)
    for inference in (True, False, True):
        with torch.inference_mode(inference):
            memory = memory_of(decoder, 3)
            check_equal(device_search(RULES, decoder, memory, attention=False), expected)
    assert len(device._kept[decoder]) == 1


# -------------------------------------------------------------------------------- steps


def counted_steps(monkeypatch, decoder):
    counts = []
    step = decoder.step
    monkeypatch.setattr(decoder, "step", lambda *given: counts.append(1) or step(*given))
    return counts


def test_it_stops_at_the_next_look_after_all_pictures_are_done(monkeypatch):
    decoder = opinionated(end=15.0)
    memory = memory_of(decoder, 6)
    steps = counted_steps(monkeypatch, decoder)
    options = Beam(max_length=30)
    beam_search(options, decoder, memory, attention=False)
    needed = len(steps)
    steps.clear()
    device_search(options, decoder, memory, attention=False)
    assert needed <= len(steps) < needed + LOOK_EVERY < 30


def test_flags_that_arrive_late_cost_steps_and_change_nothing(monkeypatch):
    """On a device, the host is ahead: no flag may have arrived before the last step."""
    decoder = opinionated(end=15.0)
    memory = memory_of(decoder, 6)
    options = Beam(max_length=30)
    expected = beam_search(options, decoder, memory, attention=False)
    steps = counted_steps(monkeypatch, decoder)
    first_done, has_arrived = device.DoneFlags.first_done, []
    monkeypatch.setattr(
        device.DoneFlags, "first_done", lambda self: first_done(self) if has_arrived else None
    )
    monkeypatch.setattr(device.DoneFlags, "wait", lambda self: has_arrived.append(1))
    check_equal(device_search(options, decoder, memory, attention=False), expected)
    assert len(steps) == 30 and not has_arrived
    # The next batch knows how many steps the last one took, and waits there, once.
    has_arrived.append(1)
    (beam,) = device._kept[decoder].values()
    beam.usual_steps = beam.flags.first_done()
    has_arrived.clear()
    steps.clear()
    check_equal(device_search(options, decoder, memory, attention=False), expected)
    assert len(steps) == beam.usual_steps < 30 and len(has_arrived) == 1


class Recording(TorchDispatchMode):
    """The operators that a function calls. `replay` calls them again on the same tensors, as a
    CUDA graph would: with the numbers and shapes of the first time."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        now = {}
        for function, args, kwargs, result in self.calls:
            args, kwargs = tree_map(lambda part: now.get(id(part), part), (args, kwargs))
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                now[id(old)] = new

    def names(self):
        return [function.name().split("::")[1].split(".")[0] for function, *_ in self.calls]


def recorded(step, restart, _):
    with torch.no_grad():
        restart()
        step()
        restart()
        with Recording() as recording:
            step()
    return recording.replay


@pytest.mark.parametrize("name", seldom(VARIANTS, "top_down", "transformer"))
def test_a_recorded_step_serves_all_positions_and_batches(name, monkeypatch):
    decoder = talkative(name)
    bonus = bonus_for(5, 30)
    monkeypatch.setattr(device, "record_graph", recorded)
    for number, seed in enumerate((1, 2, 3)):
        memory = memory_of(decoder, 5, seed)
        given = {"attention": True, "word_bonus": bonus * number}
        if number:  # as on CUDA
            (beam,) = device._kept[decoder].values()
            beam._is_recordable = True
        found = device_search(RULES, decoder, memory, **given)
        check_equal(found, beam_search(RULES, decoder, memory, **given), attention=True)
    assert beam._replay is not None


@pytest.mark.parametrize("name", ["lstm", "top_down", "transformer"])
def test_a_step_reads_nothing_on_the_host(name):
    """Tensors of the device `meta` have no values: reading one fails."""
    decoder = built(VARIANTS[name]).eval().to("meta")
    grid = torch.empty(4, 5, 96, device="meta")
    memory = decoder.prepare(grid, grid.mean(1))
    bonus = torch.empty(4, 30, device="meta")
    with torch.no_grad():
        beam = DeviceBeam(RULES, decoder, memory, True, bonus)
        beam.restart(decoder)
        beam.step(decoder)
        assert beam._result().words.shape == (4, 3, 12)
        with pytest.raises(RuntimeError):
            beam.all_done.item()


@pytest.mark.parametrize(
    ("name", "most"), [("lstm", 170), ("top_down", 190), ("transformer", 240)]
)
def test_launches_do_not_depend_on_the_batch_or_the_position(name, most):
    decoder, counts = talkative(name), {}
    for count in (2, 16):
        memory = memory_of(decoder, count)
        with torch.no_grad():
            beam = DeviceBeam(RULES, decoder, memory, True, bonus_for(count, 30))
            beam.restart(decoder)
            kept = [*beam.beams.values(), *beam.state.values(), *beam.ended.values()]
            places = [part.data_ptr() for part in kept]
            for position in range(RULES.max_length):
                with Recording() as recording:
                    beam.step(decoder)
                counts[count, position] = tuple(recording.names())
                assert places == [part.data_ptr() for part in kept]
    assert len(set(counts.values())) == 1
    names = counts[2, 0]
    assert not WAITS & set(names)
    assert sum(name not in VIEWS for name in names) <= most


def profiled(function):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return Counter(event.name.removeprefix("aten::") for event in profile.events())


def test_the_profiler_sees_no_wait_and_as_many_launches_for_any_batch():
    decoder = opinionated(end=-100.0)  # so that all batches take all steps
    totals = []
    for count in (2, 16):
        memory = memory_of(decoder, count)
        device_search(RULES, decoder, memory, attention=False)
        ops = profiled(lambda given=memory: device_search(RULES, decoder, given, attention=False))
        assert not WAITS & ops.keys()
        totals.append(ops.total())
    assert totals[0] == totals[1]
    # The search for processors does wait, which shows that the profiler would see it.
    ops = profiled(lambda: beam_search(RULES, decoder, memory, attention=False))
    assert WAITS & ops.keys()


# -------------------------------------------------------------------------------- graphs


def test_a_step_that_cannot_be_recorded_runs_without_a_graph(monkeypatch, caplog):
    decoder = opinionated()
    memory = memory_of(decoder, 3)
    expected = beam_search(RULES, decoder, memory, attention=False)

    def refuse(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(device, "record_graph", refuse)
    device_search(RULES, decoder, memory, attention=False)
    (beam,) = device._kept[decoder].values()
    beam._is_recordable = True  # as on CUDA
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            check_equal(device_search(RULES, decoder, memory, attention=False), expected)
    assert [record.getMessage() for record in caplog.records] == [
        "the search runs without a CUDA graph, which is slower: operation not permitted when "
        "stream is capturing"
    ]


def test_memory_that_runs_out_is_not_taken_for_a_step_that_cannot_be_recorded(monkeypatch):
    """It is answered with smaller batches."""
    decoder = opinionated()
    memory = memory_of(decoder, 3)

    def refuse(*_):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(device, "record_graph", refuse)
    device_search(RULES, decoder, memory, attention=False)
    (beam,) = device._kept[decoder].values()
    beam._is_recordable = True
    with pytest.raises(torch.OutOfMemoryError):
        device_search(RULES, decoder, memory, attention=False)


def test_weights_that_have_moved_and_other_shapes_are_recorded_again():
    decoder = opinionated()
    for count in range(1, SHAPES_KEPT + 3):
        device_search(RULES, decoder, memory_of(decoder, count), attention=False)
        assert len(device._kept[decoder]) == min(count, SHAPES_KEPT)
    newest = list(device._kept[decoder].values())[-1]
    device_search(RULES, decoder, memory_of(decoder, SHAPES_KEPT + 2), attention=False)
    assert list(device._kept[decoder].values())[-1] is newest
    decoder.vocabulary_bias.data = decoder.vocabulary_bias.data.clone()
    device_search(RULES, decoder, memory_of(decoder, SHAPES_KEPT + 2), attention=False)
    assert list(device._kept[decoder].values())[-1] is not newest


@pytest.mark.parametrize("attention", [True, False])
def test_captions_are_made_of_what_has_arrived_on_the_host(attention):
    class Arrived:
        def __init__(self, parts):
            self.parts = parts

        def wait(self):
            return self.parts

    decoder = opinionated()
    found = device_search(RULES, decoder, memory_of(decoder, 3), attention=attention)
    parts = [part for part in found[:5] if part is not None]
    assert len(parts) == 4 + attention
    elsewhere = [torch.empty_like(part, device="meta") for part in parts]
    on_its_way = type(found)(*elsewhere[:4], (*elsewhere, None)[4], Arrived(parts))
    check_equal(on_its_way, found, attention)


def test_a_decoder_that_is_gone_leaves_nothing():
    decoder = opinionated()
    device_search(RULES, decoder, memory_of(decoder, 2), attention=False)
    kept = len(device._kept)
    del decoder
    assert len(device._kept) == kept - 1


# -------------------------------------------------------------------------------- CUDA


@needs_cuda
@pytest.mark.parametrize("name", VARIANTS)
def test_captions_on_cuda_are_those_of_the_processor(name):
    decoder = talkative(name)
    bonus = bonus_for(6, 30)
    expected = beam_search(RULES, decoder, memory_of(decoder, 6), attention=True, word_bonus=bonus)
    memory = {part: tensor.cuda() for part, tensor in memory_of(decoder, 6).items()}
    decoder.cuda()
    for _ in range(3):
        found = RULES.search(decoder, memory, attention=True, word_bonus=bonus.cuda())
        check_equal(found, expected)
    (beam,) = device._kept[decoder].values()
    assert beam._replay is not None


@needs_cuda
def test_a_batch_on_cuda_waits_at_most_twice(monkeypatch):
    decoder = opinionated(end=2.0).cuda()
    memory = {name: part.cuda() for name, part in memory_of(decoder.cpu(), 64).items()}
    decoder.cuda()
    for _ in range(2):
        Beam().search(decoder, memory).hypotheses()
    waits, synchronize = [], torch.cuda.Event.synchronize
    monkeypatch.setattr(
        torch.cuda.Event, "synchronize", lambda self: waits.append(1) or synchronize(self)
    )
    torch.cuda.set_sync_debug_mode("error")
    try:
        Beam().search(decoder, memory).hypotheses()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) <= 2
