"""Search spaces: read without Ray, refused early, drawn within their bounds."""

import functools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.config import Config, dumps, load, loads, with_parameters
from raycap.decoders import Recurrent, Transformer
from raycap.errors import UserError
from raycap.tuning import Tune
from raycap.tuning.space import Space, read_space

REPOSITORY = Path(__file__).resolve().parent.parent
SPACE = """
train.lr: {log_uniform: [1e-4, 1e-2]}
train.batch: {choice: [8, 16]}
train.objective.label_smoothing: {uniform: [0, 0.2]}
decoder.layers:
  - {integer: [1, 3], when: {decoder.kind: recurrent}}
  - {integer: [2, 5], when: {decoder.kind: transformer}}
decoder.cell: {choice: [lstm, gru], when: {decoder.kind: recurrent}}
decoder.gated_context:
  {choice: [false, true], when: {decoder.kind: recurrent, decoder.cell: [lstm]}}
decoder.kind: {choice: [top_down, recurrent, transformer]}
"""


def space_of(folder: Path, text: str, config: Config | None = None) -> Space:
    file = folder / "space.yaml"
    file.write_text(text)
    return read_space(str(file), functools.partial(with_parameters, config or Config()))


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Space:
    return space_of(tmp_path_factory.mktemp("space"), SPACE)


@given(seed=st.integers(0, 2**32))
def test_every_draw_is_a_config_within_its_ranges(space: Space, seed: int) -> None:
    (drawn,) = space.drawn(1, seed)
    config = with_parameters(Config(), drawn)
    assert 1e-4 <= config.train.lr <= 1e-2 and config.train.batch in (8, 16)
    decoder = config.decoder
    assert ("decoder.layers" in drawn) == isinstance(decoder, Recurrent | Transformer)
    if isinstance(decoder, Recurrent):
        assert 1 <= decoder.layers <= 3 and decoder.cell in ("lstm", "gru")
        assert ("decoder.gated_context" in drawn) == (decoder.cell == "lstm")
    if isinstance(decoder, Transformer):
        assert 2 <= decoder.layers <= 5
    assert loads(dumps(config)) == config
    assert space.drawn(1, seed) == [drawn]


def test_features_are_made_for_every_case_that_a_trial_may_come_to(tmp_path: Path) -> None:
    text = """
decoder.kind: {choice: [recurrent, transformer]}
train.batch: {choice: [16, 32], when: {decoder.kind: recurrent}}
reading.background: {choice: ['#000000', '#ffffff'], when: {train.batch: 32}}
"""
    space = space_of(tmp_path, text)
    seen = {point.get("reading.background") for point in space.grid()}
    assert (
        {point.get("reading.background") for point in space.feature_points()}
        == seen
        == {None, "#000000", "#ffffff"}
    )


def test_the_longest_trial_is_long_in_both_phases(tmp_path: Path) -> None:
    """A scheduler must know how long trials may be; with too small a number none would finish."""
    from raycap.commands.tune.search import longest_trial

    text = "train.epochs: {choice: [10, 20]}\ntrain.self_critical.epochs: {choice: [0, 10]}"
    assert longest_trial(Config(), space_of(tmp_path, text)) == 30


def test_a_draw_uses_the_whole_of_a_range(space: Space) -> None:
    drawn = space.drawn(400, 0)
    rates = np.log10([point["train.lr"] for point in drawn])
    assert np.histogram(rates, 4, (-4, -2))[0].min() > 60
    assert {point.get("decoder.layers") for point in drawn} == {None, 1, 2, 3, 4, 5}


def test_a_grid_has_every_combination_once(tmp_path: Path) -> None:
    text = """
train.batch: {choice: [8, 16]}
decoder.kind: {choice: [top_down, recurrent]}
decoder.layers: {integer: [1, 3], when: {decoder.kind: recurrent}}
"""
    points = space_of(tmp_path, text).grid()
    assert len(points) == 2 * (1 + 3) == len({str(sorted(point.items())) for point in points})


def test_a_grid_of_a_continuous_range_is_refused(space: Space) -> None:
    with pytest.raises(UserError, match=r"train\.lr is log_uniform"):
        space.grid()


# The config's decoder has no such option.
@pytest.mark.parametrize(
    "text, words",
    [
        ("train.lrr: {uniform: [0.1, 1]}", ["train.lrr", "did you mean 'lr'?"]),
        ("trian.lr: {uniform: [0.1, 1]}", ["trian.lr", "'train'"]),
        ("decoder.cel: {choice: [gru]}", ["decoder.cel"]),
        (
            "decoder.cell: {choice: [gru]}",
            ["decoder.cell"],
        ),
        ("decoder.kind: {choice: [recurent]}", ["recurent", "did you mean 'recurrent'?"]),
        ("train.batch: {choice: [8, 0]}", ["train.batch is 0"]),
        ("train.batch: {choice: [8, many]}", ["train.batch is 'many'"]),
        ("train.batch: {uniform: [1, 8]}", ["train.batch is 1"]),
        ("train.lr: {log_uniform: [0, 1]}", ["log_uniform", "0"]),
        ("train.lr: {uniform: [1, 0.1]}", ["train.lr", "lowest"]),
        ("train.lr: {unifrom: [0.1, 1]}", ["unifrom", "did you mean 'uniform'?"]),
        ("train.lr: {uniform: [0.1, 1], choice: [1]}", ["train.lr"]),
        ("train.lr: 5", ["train.lr"]),
        ("train.lr: {choice: []}", ["train.lr", "no value"]),
        ("decoder.output_dropout: {uniform: [0, 1]}", ["output_dropout"]),
        ("train.out: {choice: [a, b]}", ["train.out", "folder of its own"]),
        ("train.workers.count: {choice: [1, 2]}", ["train.workers.count"]),
        ("tune.trials: {choice: [1, 2]}", ["tune.trials"]),
        (
            "encoder.size: {integer: [1, 2], when: {train.batch: 8}}",
            ["train.batch", "not searched"],
        ),
        (
            "train.lr: {uniform: [0.1, 1], when: {train.batch: 9}}\ntrain.batch: {choice: [8]}",
            ["none of its choices"],
        ),
        (
            "train.lr: {choice: [1.0], when: {train.batch: 8}}\n"
            "train.batch: {choice: [8], when: {train.lr: 1.0}}",
            ["decide about each other"],
        ),
        ("[]", ["mapping"]),
        ("a: [", ["not YAML"]),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_reason(
    text: str, words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        space_of(tmp_path, text)
    assert str(tmp_path / "space.yaml") in str(refused.value)
    for word in words:
        assert word in str(refused.value)


def test_the_space_beside_the_configs_fits_its_config() -> None:
    config = load(str(REPOSITORY / "configs" / "flickr8k.yaml"))
    space = read_space(
        str(REPOSITORY / "configs" / "space.yaml"), functools.partial(with_parameters, config)
    )
    assert len(space.drawn(5, 0)) == 5


@pytest.mark.parametrize(
    "options",
    [
        {"trials": 0},
        {"grace": 0},
        {"reduction": 1},
        {"cpus": 0.0},
        {"gpus": -1.0},
        {"concurrent": 0},
        {"retries": -1},
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Tune(**options)


def test_a_space_is_read_without_ray_and_torch() -> None:
    program = (
        "import sys, raycap.tuning.space, raycap.tuning.trials, raycap.tuning.schedulers; "
        "print([name for name in ('torch', 'ray') if name in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"
