"""Flags and finishing in the table job: made again without the model, retried, and once under
kills."""

import functools
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from table_jobs import Numbers
from test_kill_points import killed_everywhere, rows_of

from raycap.bulk.finishing import with_finishing
from raycap.bulk.job import TableJob
from raycap.bulk.options import BulkOptions, CaptionOptions, ExtractOptions
from raycap.bulk.run import run_job
from raycap.bulk.work import FINISHING, FileLayout
from raycap.captioners.protocol import Prediction, caption_row
from raycap.errors import UserError
from raycap.finishing import Finish, Finishing
from raycap.flags import Flags
from raycap.images import Square
from raycap.schema import ATTEMPT, CAPTIONS, SUCCESS

pytestmark = pytest.mark.usefixtures("no_ray")

LOOP = "a dog and a cat and a dog and a cat and a dog and a cat and a dog and a cat"
ROWS = 9
# How often the model was asked, by key.
ASKED: Counter[str] = Counter()


def answer(key: str, attempt: int) -> Prediction:
    """Every third picture gets a loop; of those, even keys get a good caption when they are tried
    again, and one of the others a worse loop."""
    number = int(key)
    if number % 3:
        return Prediction(f"Picture {number} shows a street. It is long.", -1.0)
    if attempt == 0:
        return Prediction(f"{number} {LOOP}", -1.0)
    if number % 2 == 0:
        return Prediction(f"Attempt {attempt} at {number}, a dog.", -2.0)
    return Prediction(f"{number} {LOOP} {attempt}", -3.0 + attempt)


def open_model(
    finishing: Finishing, options: BulkOptions, threads: int
) -> Callable[[pa.Table], pa.Table]:
    def caption(table: pa.Table) -> pa.Table:
        rows = []
        for row in table.drop_columns(["pixels"]).to_pylist():
            attempt = row.get(ATTEMPT) or 0
            ASKED[row["key"]] += 1
            made = caption_row(SUCCESS, "", answer(row["key"], attempt), finishing)
            sha256 = hashlib.sha256(row["key"].encode()).hexdigest()
            rows.append({**row, **made, "attempt": attempt, "sha256": sha256})
        return pa.Table.from_pylist(rows, CAPTIONS)

    return caption


AS_IT_IS, NEVER_MANY = Finish(), Flags(many=0)


@dataclass
class Command:
    """A command line."""

    finish: Finish = AS_IT_IS
    flags: Flags = NEVER_MANY
    retry: str = ""
    rows: int = ROWS
    batch: int = 2

    def run(self, out: Path, opens: Callable[..., Any] = open_model) -> None:
        finishing = Finishing(self.finish, self.flags)
        options = CaptionOptions(
            out=str(out), batch=self.batch, part_rows=2 * self.batch, retry=self.retry
        )
        layout = FileLayout(
            2 * self.batch,
            CAPTIONS,
            (),
            {"captioner": "A", FINISHING: finishing.digest()},
            functools.partial(with_finishing, finishing=finishing),
        )
        job = TableJob(
            command="caption",
            table="captions",
            source=Numbers(self.rows),  # type: ignore[arg-type]
            options=options,
            identity={"captioner": "A"},
            layout=layout,
            intake=Square(8),
            open_model=functools.partial(opens, finishing),
            finishing=finishing,
        )
        run_job(job, {})


def rows(out: Path) -> dict[str, dict[str, Any]]:
    delta = DeltaTable(out / "captions")
    paths = pa.table(delta.get_add_actions(flatten=True))["path"].to_pylist()
    found = rows_of(out / "captions", paths)
    keys = [row["key"] for row in found]
    assert len(set(keys)) == len(keys), "a key twice"
    plain = pq.read_table(out / "captions")["key"].to_pylist()
    assert sorted(plain) == sorted(keys), "readers of plain Parquet see other rows"
    return {row["key"]: row for row in found}


def facts(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "facts.json").read_text())
    assert found["table_version"] == DeltaTable(out / "captions").version()
    return found


SHORT = Finish(first_sentence=True, prepend="photo:", lower=True)


def test_other_finishing_makes_captions_again_without_the_model(tmp_path: Path) -> None:
    out = tmp_path / "out"
    Command().run(out)
    before = rows(out)
    assert before["1"]["caption"] == "Picture 1 shows a street. It is long."
    assert before["1"]["raw_caption"] is None and before["0"]["flags"] == ["repeats"]
    assert facts(out)["flags"] == {"repeats": 3} and facts(out)["flagged"] == 3

    ASKED.clear()
    Command(SHORT, Flags(many=0, min_score=-0.5)).run(out)
    after = rows(out)
    assert not ASKED
    assert after["1"]["caption"] == "photo: picture 1 shows a street."
    assert all(after[key]["raw_caption"] == before[key]["caption"] for key in before)
    assert after["0"]["flags"] == ["low_score", "repeats"]
    assert facts(out)["flags"] == {"low_score": ROWS, "repeats": 3}
    assert facts(out)["finishing"]["finish"]["first_sentence"]

    # The same once more changes nothing; without options the first captions are back.
    files = sorted(path.name for path in (out / "captions").glob("*.parquet"))
    Command(SHORT, Flags(many=0, min_score=-0.5)).run(out)
    assert sorted(path.name for path in (out / "captions").glob("*.parquet")) == files
    Command().run(out)
    assert rows(out) == before and not ASKED


def test_new_rows_and_old_ones_are_finished_alike(tmp_path: Path) -> None:
    out = tmp_path / "out"
    Command().run(out)
    ASKED.clear()
    Command(SHORT, rows=ROWS + 4).run(out)
    assert set(ASKED) == {str(number) for number in range(ROWS, ROWS + 4)}
    found = rows(out)
    assert len(found) == ROWS + 4
    assert all(row["caption"].startswith("photo: ") for row in found.values())


def test_flagged_rows_are_tried_again_and_the_better_answer_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    Command().run(out)
    before = rows(out)
    ASKED.clear()
    Command(retry="flagged:repeats").run(out)
    assert ASKED == {"0": 1, "3": 1, "6": 1}
    found = rows(out)
    assert found["0"]["caption"] == "Attempt 1 at 0, a dog." and found["0"]["attempt"] == 1
    assert found["6"]["flags"] == [] and found["3"] == before["3"], "the worse loop stays out"
    assert all(found[key] == before[key] for key in before if key not in ("0", "6"))
    assert facts(out)["flags"] == {"repeats": 1}

    # The next time, the number is another one, also for what was kept.
    Command(retry="flagged").run(out)
    assert rows(out)["3"] == before["3"]
    Command(retry="flagged").run(out)
    assert rows(out)["3"]["attempt"] == 3 and rows(out)["3"]["score"] == 0.0
    ASKED.clear()
    Command(retry="flagged:echo").run(out)
    assert not ASKED
    with pytest.raises(UserError, match="no flag 'repeat'; did you mean 'repeats'"):
        Command(retry="flagged:repeat").run(out)


@pytest.mark.parametrize("retry", ["flag", "flagged:", "failed:repeats", "success"])
def test_a_retry_of_something_else_is_refused(retry: str) -> None:
    with pytest.raises(UserError, match="give one of failed, failed_to_fetch"):
        CaptionOptions(retry=retry)


def test_features_have_no_flags() -> None:
    with pytest.raises(UserError, match="--retry is 'flagged'"):
        ExtractOptions(retry="flagged")


def same(finishing: Finishing, options: BulkOptions, threads: int) -> Any:
    """One caption for all pictures but every tenth; all pictures from 40 on are the same one."""
    model = open_model(finishing, options, threads)

    def caption(table: pa.Table) -> pa.Table:
        found = model(table).to_pylist()
        for row in found:
            number = int(row["key"])
            row["caption"] = f"Only {number}." if number % 10 == 0 else "I see a picture."
            row["flags"] = []
            if number >= 40:
                row |= {"sha256": "f" * 64, "caption": "The same picture."}
        return pa.Table.from_pylist(found, CAPTIONS)

    return caption


def test_one_caption_over_many_different_pictures(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = Command(flags=Flags(many=30), rows=80, batch=20)
    command.run(out, same)
    found = rows(out)
    flagged = {key for key, row in found.items() if row["flags"]}
    assert flagged == {str(number) for number in range(40) if number % 10}
    assert facts(out)["flags"] == {"same_as_many": 36}
    replace(command, flags=Flags(many=37)).run(out, same)
    assert not any(row["flags"] for row in rows(out).values())
    assert facts(out)["flags"] == {}


def test_a_table_of_an_earlier_version_gets_the_new_columns(tmp_path: Path) -> None:
    """It has none of the columns, and no digest in its files."""
    old = pa.schema(
        [field for field in CAPTIONS if field.name not in ("flags", "raw_caption", "attempt")]
    )

    def opens(*how: Any) -> Any:
        model = open_model(*how)
        return lambda table: model(table).select(old.names)

    out = tmp_path / "out"
    job = Command()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("test_finishing_job.CAPTIONS", old)
        patch.setattr("test_finishing_job.FINISHING", "else")
        patch.setattr("raycap.bulk.run._Run.finish_captions", lambda self: None)
        job.run(out)
    assert DeltaTable(out / "captions").schema().to_arrow() is not None
    assert "flags" not in pq.read_schema(next((out / "captions").glob("*.parquet"))).names
    ASKED.clear()
    Command(SHORT).run(out)
    assert not ASKED
    table = DeltaTable(out / "captions").to_pyarrow_table()
    assert table.schema.names == CAPTIONS.names and len(table) == ROWS
    assert rows(out)["0"]["flags"] == ["repeats"]


def expected(command: Command) -> dict[str, Any]:
    finishing = Finishing(command.finish, command.flags)
    found = {}
    for number in range(command.rows):
        prediction = answer(str(number), 0)
        found[str(number)] = finishing.complete(prediction.caption, prediction.score)
    return found


OTHER = Command(SHORT, Flags(many=0, min_score=-0.5))


@pytest.mark.parametrize("killed", ["finish", "retry"])
def test_a_run_killed_at_some_steps_is_completed_by_another(killed: str, tmp_path: Path) -> None:
    """The next command finishes in another way than the killed one: all rows are as it says."""
    check_kills(killed, 3, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["first", "finish", "retry"])
def test_a_run_killed_at_any_step_is_completed_by_another(killed: str, tmp_path: Path) -> None:
    check_kills(killed, 1000, tmp_path)


def check_kills(killed: str, most_steps: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if killed != "first":
        Command().run(out)
    what = {"first": Command(), "finish": OTHER, "retry": Command(retry="flagged")}[killed]
    steps = killed_everywhere(what, out, tmp_path / "copies")  # type: ignore[arg-type]
    assert len(steps) > 5
    after = [OTHER, Command(), replace(OTHER, retry="flagged")]
    for number, step in enumerate(steps[:: max(1, len(steps) // most_steps)]):
        command = after[number % len(after)]
        copy = tmp_path / "copy"
        shutil.copytree(step, copy)
        command.run(copy)
        found = rows(copy)
        wanted = expected(command)
        assert found.keys() == wanted.keys(), "a row is lost"
        assert facts(copy)["rows"] == ROWS
        for key, row in found.items():
            if row["attempt"]:
                assert int(key) % 3 == 0, "only flagged rows were tried again"
                prediction = answer(key, row["attempt"])
                finishing = Finishing(command.finish, command.flags)
                finished = finishing.complete(prediction.caption, prediction.score)
            else:
                finished = wanted[key]
            got = (row["caption"], row["raw_caption"], row["flags"])
            assert got == (finished.caption, finished.raw_caption, finished.flags)
        shutil.rmtree(copy)
