"""Stores that cannot write a file on the condition that it is not there: refused, unless the user
says that one run writes at a time."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from small_captioner import photos
from toy_captioner import SizeOptions

from raycap.bulk import last_commit
from raycap.bulk.captions import captions_job
from raycap.bulk.options import CaptionOptions
from raycap.bulk.run import run_job
from raycap.bulk.table import OutputTable
from raycap.cluster import Cluster
from raycap.errors import UserError
from raycap.fetch import Fetch
from raycap.images import Reading
from raycap.sources import Folder
from raycap.storage import RunFolder, lease
from raycap.storage.delta import storage_options

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

from fault_stores import moto_bucket  # a server that can be started without an ability

pytestmark = pytest.mark.usefixtures("no_ray")
PICTURES = 5


@contextlib.contextmanager
def store(how: str) -> Iterator[str]:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "SECONDS_TO_SETTLE", 0.0)
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "")  # so that they are as before in the end
        patch.setenv("AWS_DEFAULT_REGION", "")
        with moto_bucket(how) as found:
            yield found.uri


def run(photos: Path, out: str, **options: Any) -> int:
    asked = CaptionOptions(out=out, batch=2, part_rows=2, **options)
    how = (Fetch(), Reading(), Cluster())
    return run_job(captions_job(SizeOptions(), Folder(str(photos)), asked, *how), {})


UNSAFE: dict[str, Any] = {"commit": "unsafe-single-driver"}


@pytest.fixture(scope="module")
def careless() -> Iterator[str]:
    with store("--ignore") as found:
        yield found


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    with store("--refuse") as found:
        yield found


@pytest.mark.slow  # another server
@pytest.mark.parametrize("options", [{}, UNSAFE], ids=["safe", "unsafe"])
def test_a_store_that_refuses_conditional_writes(
    options: dict[str, Any], refusing: str, tmp_path: Path
) -> None:
    source, out = photos(tmp_path / "photos", range(1)), f"{refusing}/out"
    with pytest.raises(UserError, match="refuses to write a file on the condition"):
        run(source, out, **options)
    assert RunFolder(out).names(hidden=True) == [], "nothing is left there"


@pytest.mark.thorough
def test_a_store_that_ignores_conditions_needs_a_word_of_the_user(
    careless: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = photos(tmp_path / "photos", range(PICTURES)), f"{careless}/out"
    for _ in range(2):
        with pytest.raises(UserError, match=r"cannot write a file on the condition.*--commit"):
            run(source, out)
        assert RunFolder(out).names(hidden=True) == [], "nothing is left there"
    with monkeypatch.context() as killed:  # between the last commit of chunks and the join
        killed.setattr(last_commit, "join_part", None)
        with pytest.raises(TypeError):
            run(source, out, **UNSAFE)
    assert OutputTable(RunFolder(f"{out}/captions")).completed == 0
    with pytest.raises(UserError, match="--commit unsafe-single-driver"):
        run(source, out)
    assert run(source, out, **UNSAFE) == 0
    photos(source, range(PICTURES, PICTURES + 2))
    assert run(source, out, **UNSAFE) == 0
    table = DeltaTable(f"{out}/captions", storage_options=storage_options(out))
    keys = pa.table(table.to_pyarrow_table())["key"].to_pylist()
    assert sorted(keys) == sorted(path.name for path in source.iterdir())
    facts = RunFolder(out).read_json("facts.json")
    assert facts is not None and facts["rows"] == PICTURES + 2
