"""The config tree: files and flags become the same frozen tree, and what is wrong is refused by
name."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.cli import configure
from raycap.config import CHOICES, Config, dumps, load, loads
from raycap.errors import UserError
from raycap.fetch import Fetch
from raycap.images import Reading
from raycap.sources import SOURCES

REPOSITORY = Path(__file__).resolve().parent.parent


def refused(text: str) -> str:
    with pytest.raises(UserError) as refusal:
        loads(text, "run.yaml")
    return str(refusal.value)


@settings(max_examples=25)
@given(
    st.builds(
        Fetch,
        deadline=st.floats(0.5, 1e4),
        max_bytes=st.integers(1, 10**12),
        user_agent=st.text("abc: #{}[]'\"", min_size=1),
        allow_private=st.booleans(),
    ),
    st.builds(Reading, max_side=st.integers(8, 5120), formats=st.just(("jpeg", "png"))),
)
def test_what_is_printed_loads_back_to_the_same_tree(fetch: Fetch, reading: Reading) -> None:
    config = Config(fetch=fetch, reading=reading)
    assert loads(dumps(config)) == config


@pytest.mark.parametrize(
    "section, kind", [(section, kind) for section in CHOICES for kind in CHOICES[section]]
)
def test_every_part_goes_through_a_file(section: str, kind: str) -> None:
    options = {"path": "somewhere"} if section == "source" else {}
    config = dataclasses.replace(Config(), **{section: CHOICES[section][kind](**options)})
    assert loads(dumps(config)) == config


def test_an_empty_file_is_the_defaults() -> None:
    assert loads("") == Config()


def test_numbers_as_people_write_them() -> None:
    assert loads("fetch: {deadline: 3e1, retries: 2}").fetch == Fetch(deadline=30.0, retries=2)


@pytest.mark.parametrize(
    "text, words",
    [
        ("fetsh: {}", ["run.yaml", "'fetsh'", "did you mean 'fetch'"]),
        ("fetch: {dedline: 3}", ["'fetch.dedline'", "did you mean 'deadline'"]),
        ("fetch: {deadline: soon}", ["fetch.deadline", "'soon'", "number"]),
        ("fetch: {retries: '3'}", ["fetch.retries", "integer"]),
        ("fetch: {retries: 2.5}", ["fetch.retries", "integer"]),
        ("fetch: {allow_private: 1}", ["fetch.allow_private", "boolean"]),
        ("fetch: {user_agent: 2020-01-01}", ["fetch.user_agent", "quotes"]),
        ("fetch: 3", ["fetch", "mapping"]),
        ("fetch: {deadline: -1}", ["run.yaml", "fetch", "-1"]),
        ("fetch: {retries: 1, retries: 2}", ["line 1", "'retries'", "twice"]),
        ("- fetch", ["top level", "mapping"]),
        ("1: 2", ["line 1", "not a word"]),
        ("fetch: [", ["run.yaml", "not YAML"]),
        ("source: {path: photos}", ["source", "kind"]),
        ("source: {kind: foldr, path: photos}", ["'foldr'", "did you mean 'folder'", "coco"]),
        ("source: {kind: folder}", ["source", "path"]),
        ("source: {kind: folder, path: photos, column: url}", ["'source.column'"]),
    ],
)
def test_what_is_wrong_is_named(text: str, words: list[str]) -> None:
    message = refused(text)
    for word in words:
        assert word in message


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"no-such\.yaml"):
        load("no-such.yaml")


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("fetch: {retries: 7, deadline: 9}\ninspect: {limit: 3}\n")
    config, _ = configure(
        "inspect", ["--config", str(file), "--fetch.deadline", "4", "--inspect.limit", "5"]
    )
    assert (config.fetch.retries, config.fetch.deadline, config.inspect.limit) == (7, 4.0, 5)


def test_flags_and_file_give_the_same_config(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    flags, _ = configure(
        "inspect", [str(photos), "--source", "folder", "--source.glob", "*.png", "--limit", "2"]
    )
    file = tmp_path / "run.yaml"
    file.write_text(dumps(flags))
    assert configure("inspect", ["--config", str(file)])[0] == flags


def test_the_path_given_decides_the_kind_but_keeps_the_options_of_its_own_kind(
    tmp_path: Path,
) -> None:
    (tmp_path / "photos").mkdir()
    urls = tmp_path / "urls.txt"
    urls.write_text("http://example.org/a.jpg\n")
    file = tmp_path / "run.yaml"
    file.write_text("source: {kind: folder, path: elsewhere, glob: '*.webp'}\n")
    same, _ = configure("inspect", [str(tmp_path / "photos"), "--config", str(file)])
    assert same.source == SOURCES["folder"](path=str(tmp_path / "photos"), glob="*.webp")
    other, _ = configure("inspect", [str(urls), "--config", str(file)])
    assert isinstance(other.source, SOURCES["urls"])


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().fetch.retries = 1  # type: ignore[misc]


def test_the_configuration_reference_lists_the_options_as_they_are() -> None:
    command = [sys.executable, "docs/configuration.py", "--check"]
    answer = subprocess.run(
        command, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
    )
    assert answer.returncode == 0, "run `python docs/configuration.py`"
