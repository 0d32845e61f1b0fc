"""The plan of an operation: each row of the source in it once, whoever lists it."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.bulk import plan as plan_module
from raycap.bulk.options import BulkOptions
from raycap.bulk.plan import (
    Plan,
    Shard,
    give_up_plan,
    newest_plan,
    plan_numbers,
    plans_of_table,
    read_shard,
    take_number,
    write_plan,
    write_shards,
)
from raycap.bulk.selection import chosen_rows
from raycap.bulk.taken_keys import TakenKeys
from raycap.errors import UserError
from raycap.fetch.trust import ONLY_WEB, Trust
from raycap.sources import Notes, SourceDefaults
from raycap.sources.manifest import Row, tables
from raycap.storage import RunFolder, sorted_runs

PLAN = Plan(1, "first", {"captioner": "A"}, batch=4, chunk_rows=16)


def manifest(keys: list[str], rows_each: int = 5) -> Iterator[pa.Table]:
    listed = tables((Row(key, f"/{key}") for key in keys), lambda: "nothing") if keys else ()
    for table in listed:
        for start in range(0, len(table), rows_each):
            yield table.slice(start, rows_each)


def write(out: RunFolder, keys: list[str], plan: Plan = PLAN) -> Iterator[Shard]:
    return write_shards(out, plan, 0, manifest(keys), Notes(), TakenKeys())


def planned(out: RunFolder, plan: Plan = PLAN) -> list[str]:
    shards = list(plan.shards(out))
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert [shard.is_last for shard in shards] == [False] * (len(shards) - 1) + [True]
    return [
        key
        for shard in shards
        for key in read_shard(out, plan.operation, 0, shard.number)["key"].to_pylist()
    ]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "SHARD_ROWS", 8)


@settings(max_examples=15)
@given(st.integers(0, 50))
def test_every_row_is_planned_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: int
) -> None:
    out = RunFolder(str(tmp_path_factory.mktemp("out")))
    keys = [f"{number:03}" for number in range(rows)]
    shards = list(write(out, keys))
    assert planned(out) == keys and sum(shard.rows for shard in shards) == rows
    chunks = [chunk for shard in shards for chunk in shard.chunks(1)]
    assert sum(chunk.rows for chunk in chunks) == rows
    assert all(0 < chunk.rows <= PLAN.chunk_rows for chunk in chunks)
    assert len(set(chunks)) == len(chunks)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 6), st.randoms(use_true_random=False))
def test_a_listing_that_was_killed_is_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory, rows: int, shards: int, chance: object
) -> None:
    """The source has changed meanwhile: another order, some rows less and some more."""
    out = RunFolder(str(tmp_path_factory.mktemp("out")))
    keys = [str(number) for number in range(rows)]
    first = list(itertools.islice(write(out, keys), shards))
    kept = {
        key for shard in first for key in read_shard(out, 1, 0, shard.number)["key"].to_pylist()
    }
    later = [*keys[rows // 2 :], "new", "newer"]
    chance.shuffle(later)  # type: ignore[attr-defined]
    again = list(write(out, later))
    assert again[: len(first)] == first
    found = planned(out)
    assert len(set(found)) == len(found)
    whole = first and first[-1].is_last
    assert set(found) == (kept if whole else kept | set(later))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), max_size=12), st.randoms(use_true_random=False))
def test_two_listings_at_the_same_time_make_one_plan(
    tmp_path_factory: pytest.TempPathFactory, turns: list[bool], chance: object
) -> None:
    out = RunFolder(str(tmp_path_factory.mktemp("out")))
    keys = [str(number) for number in range(40)]
    other = list(keys)
    chance.shuffle(other)  # type: ignore[attr-defined]
    listings = [write(out, keys), write(out, other)]
    seen: list[list[Shard]] = [[], []]
    for turn in [*turns, *[True, False] * 12]:
        if (shard := next(listings[turn], None)) is not None:
            seen[turn].append(shard)
    assert seen[0] == seen[1], "both see the same shards"
    assert sorted(planned(out), key=int) == keys


def test_chunks_grow_with_the_rows_before_them() -> None:
    plan = Plan(1, "first", {}, batch=64, chunk_rows=960)
    sizes = [plan.chunk_rows_after(rows) for rows in (0, 64, 3_000, 10_000, 30_000, 10_000_000)]
    assert sizes == [64, 64, 64, 256, 896, 960]
    assert Plan(1, "first", {}, batch=64, chunk_rows=1).chunk_rows_after(10**6) == 64


def test_another_run_has_planned_something_else(tmp_path: Path) -> None:
    out = RunFolder(str(tmp_path))
    write_plan(out, PLAN)
    write_plan(out, PLAN)
    with pytest.raises(UserError, match="another run has begun"):
        write_plan(out, Plan(1, "overwrite", {}, 4, 16))
    assert newest_plan(out) == PLAN


def test_which_plans_a_table_comes_from(tmp_path: Path) -> None:
    out = RunFolder(str(tmp_path))
    for number, kind in enumerate(("first", "append", "retry", "overwrite", "append"), 1):
        plan = Plan(number, kind, {}, 4, 16)  # type: ignore[arg-type]
        write_plan(out, plan)
        list(write(out, ["a"], plan))
    assert [plan.operation for plan in plans_of_table(out, completed=3)] == [1, 2, 5]
    assert [plan.operation for plan in plans_of_table(out, completed=4)] == [4, 5]
    found = newest_plan(out)
    assert found is not None and found.operation == 5


def test_the_number_of_a_plan_that_was_given_up_stays_used(tmp_path: Path) -> None:
    out = RunFolder(str(tmp_path))
    write_plan(out, PLAN)
    list(write(out, []))
    give_up_plan(out, 1)
    assert plan_numbers(out) == [1] and newest_plan(out) is None
    assert not plans_of_table(out, completed=0) and not out.folders("_plan/0001")
    with pytest.raises(UserError, match="another run has begun"):
        write_plan(out, PLAN)
    take_number(out, 2)
    take_number(out, 2)
    with pytest.raises(UserError, match="another run has begun"):
        write_plan(out, Plan(2, "append", {}, 4, 16))


@given(st.lists(st.lists(st.text())), st.lists(st.text()))
def test_taken_keys(groups: list[list[str]], asked: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_runs, "MOST_IN_MEMORY", 5)
        patch.setattr(sorted_runs, "PIECE", 3)
        taken = TakenKeys()
        for group in groups:
            taken.add(pa.chunked_array([pa.array(group, pa.string())]))
        lacks = taken.lacks(pa.chunked_array([pa.array(asked, pa.string())])).to_pylist()
    assert lacks == [key not in {key for group in groups for key in group} for key in asked]


def test_two_keys_that_share_half_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = {"a": (5, 1), "b": (5, 2), "c": (7, 3), "d": (5, 3), "e": (8, 3)}
    monkeypatch.setattr(
        "raycap.bulk.taken_keys.digests",
        lambda keys: np.array([digests[key] for key in keys], np.uint64).reshape(-1, 2).T,
    )
    taken = TakenKeys()
    taken.add(pa.chunked_array([["a", "b", "c"]]))
    assert taken.lacks(pa.chunked_array([["a", "b", "c", "d", "e"]])).to_pylist() == [
        *(False, False, False),
        *(True, True),
    ]


class Numbers(SourceDefaults):
    """A source of so many rows."""

    path = "numbers"
    trust: Trust = ONLY_WEB

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def check(self) -> None: ...

    def tables(self, notes: Notes | None = None) -> Iterator[pa.Table]:
        return tables((Row(str(number), "") for number in range(self.rows)), lambda: "nothing")


@pytest.mark.parametrize("rows", [1, 64, 65, 1064, 5000])
def test_limit_and_sample(rows: int) -> None:
    def chosen(rows: int, options: BulkOptions) -> list[str]:
        found = chosen_rows(Numbers(rows), options, Notes())  # type: ignore[arg-type]
        return [key for table in found for key in table["key"].to_pylist()]

    everything = [str(number) for number in range(rows)]
    assert chosen(rows, BulkOptions()) == everything
    assert chosen(rows, BulkOptions(limit=70)) == everything[:70]
    sample = chosen(rows, BulkOptions(sample=0.4))
    assert [key for key in everything if key in set(sample)] == sample
    assert set(sample) <= set(chosen(rows + 500, BulkOptions(sample=0.4)))
    assert rows < 1000 or 0.3 < len(sample) / rows < 0.5
