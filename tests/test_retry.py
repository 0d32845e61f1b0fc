"""Transient faults are retried, permanent ones reported at once, and nothing is done twice."""

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.exceptions import FSTimeoutError

from raycap.errors import UserError
from raycap.storage import Lease, RunFolder, lease, retry
from raycap.storage.retry import is_transient, with_retries

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(retry, "LONGEST_PAUSE", 0.05)
    monkeypatch.setattr(retry, "SECONDS_IN_ALL", 20.0)


class Faulty:
    """Does what `act` does, after so many failures; or does it, and then fails."""

    def __init__(
        self, act: Callable[..., Any], errors: list[BaseException], after: bool = False
    ) -> None:
        self.act, self.errors, self.after, self.calls = act, errors, after, 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if not self.errors:
            return self.act(*arguments, **named)
        if self.after:
            self.act(*arguments, **named)
        raise self.errors.pop(0)


class Answer(Exception):
    """As clients of stores raise it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def botocore_error(status: int, code: str = "X") -> Exception:
    exceptions = pytest.importorskip("botocore.exceptions")
    answer = {
        "Error": {"Code": code, "Message": "m"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    error: Exception = exceptions.ClientError(answer, "PutObject")
    return error


def caused(error: OSError, cause: Exception) -> OSError:
    error.__cause__ = cause
    return error


def passing() -> list[BaseException]:
    botocore, aiohttp = pytest.importorskip("botocore.exceptions"), pytest.importorskip("aiohttp")
    names = (
        "EIO",
        "EAGAIN",
        "EINTR",
        "EBUSY",
        "ESTALE",
        "ETIMEDOUT",
        "ECONNRESET",
        "ENETUNREACH",
        "ECONNREFUSED",
    )
    return [
        *(OSError(getattr(errno, name), name) for name in names),
        TimeoutError(),
        FSTimeoutError(),
        ConnectionResetError(),
        socket.gaierror(socket.EAI_AGAIN, "name resolution"),
        botocore.EndpointConnectionError(endpoint_url="http://x"),
        botocore.ReadTimeoutError(endpoint_url="http://x"),
        botocore.ConnectionClosedError(endpoint_url="http://x"),
        botocore.HTTPClientError(error="broken"),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError(),
        *(botocore_error(status) for status in (429, 500, 502, 503, 504)),
        caused(
            OSError(errno.EIO, "of s3fs, for an answer that it does not know"), botocore_error(503)
        ),
        Answer(503),
    ]


def staying() -> list[BaseException]:
    botocore = pytest.importorskip("botocore.exceptions")
    names = (
        "ENOSPC",
        "EDQUOT",
        "EACCES",
        "EROFS",
        "ENOENT",
        "EISDIR",
        "ENOTDIR",
        "ENAMETOOLONG",
        "EFBIG",
    )
    return [
        *(OSError(getattr(errno, name), name) for name in names),
        socket.gaierror(socket.EAI_NONAME, "no such host"),
        botocore.NoCredentialsError(),
        botocore.SSLError(endpoint_url="https://x", error="certificate"),
        *(botocore_error(status) for status in (400, 403, 404, 507)),
        caused(OSError(errno.EIO, "of s3fs"), botocore_error(400)),
        Answer(404),
        ValueError(),
        UserError("no"),
        FileNotFoundError("of s3fs, without a number"),
    ]


def test_what_passes_and_what_stays() -> None:
    assert [error for error in passing() if not is_transient(error)] == []
    assert [error for error in staying() if is_transient(error)] == []


def test_it_is_tried_until_it_works_or_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    act = Faulty(lambda: "done", [OSError(errno.EIO, "x") for _ in range(5)])
    assert with_retries(act, "write") == "done" and act.calls == 6
    full = Faulty(lambda: "done", [OSError(errno.ENOSPC, "full")])
    with pytest.raises(OSError, match="full"):
        with_retries(full, "write")
    assert full.calls == 1
    monkeypatch.setattr(retry, "SECONDS_IN_ALL", 0.2)
    never = Faulty(lambda: "done", [OSError(errno.EIO, "x") for _ in range(10_000)])
    with pytest.raises(OSError, match="x"):
        with_retries(never, "write")
    assert never.calls > 3


def test_an_fsync_that_fails_has_the_whole_file_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a failed fsync the bytes may be gone: a second fsync would find nothing to do."""
    fsync, sizes = os.fsync, []

    def failing(number: int) -> None:
        sizes.append(os.fstat(number).st_size)
        if len(sizes) < 3:
            os.ftruncate(number, 0)
            raise OSError(errno.EIO, "Input/output error")
        fsync(number)

    monkeypatch.setattr(os, "fsync", failing)
    folder = RunFolder(str(tmp_path))
    folder.write("facts.json", b"whole")
    assert sizes == [5, 5, 5] and folder.read("facts.json") == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_rename_is_done_once_also_when_only_its_answer_was_lost(
    what: str, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(str(tmp_path))
    folder.write("old" if what == "file" else "old/part", b"rows")
    replace = Faulty(os.replace, [OSError(errno.EIO, "lost")], after)
    monkeypatch.setattr(os, "replace", replace)
    folder.rename("old", "deep/new")
    assert folder.read("deep/new" if what == "file" else "deep/new/part") == b"rows"
    assert not folder.exists("old") and not replace.errors


def test_a_rename_of_what_is_not_there_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(str(tmp_path))
    folder.write("new", b"of another")
    with pytest.raises(UserError, match="No such file"):
        folder.rename("old", "new")
    folder.write("old", b"rows")

    def vanishing(source: str, target: str) -> None:
        Path(source).unlink()
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(os, "replace", vanishing)
    with pytest.raises(UserError, match="No such file"):
        folder.rename("old", "new")
    assert folder.read("new") == b"of another"


def test_a_table_is_read_again_when_reading_fails_in_the_middle(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    pq.write_table(pa.table({"key": ["a", "b"]}), tmp_path / "part")
    left = [OSError(errno.EIO, "x"), OSError(errno.ESTALE, "x")]

    class Broken:
        def __init__(self, file: Any) -> None:
            self.file, self.closed = file, False

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def read(self, *arguments: Any) -> Any:
            if left:
                raise left.pop()
            return self.file.read(*arguments)

    table = folder.reading("part", lambda file: pq.read_table(Broken(file)))
    assert table["key"].to_pylist() == ["a", "b"] and not left


def test_the_heartbeat_outlives_every_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "SECONDS_BETWEEN_RENEWALS", 0.01)
    monkeypatch.setattr(retry, "SECONDS_IN_ALL", 0.0)
    folder, beaten = RunFolder(str(tmp_path)), threading.Event()
    with Lease(folder) as ours:
        write = RunFolder.write_json
        faults: list[BaseException] = [*passing(), *staying()]
        faulty = Faulty(lambda *call: (write(folder, *call[1:]), beaten.set()), faults)
        monkeypatch.setattr(RunFolder, "write_json", lambda *call: faulty(*call))
        assert beaten.wait(60), "it beats again after each of them"
        assert not faults
        ours.check()
        monkeypatch.setattr(RunFolder, "write_json", write)
        with lease._locked(folder):  # as a successor does
            folder.write_json("_lease.json", {"run": "another"})
        with pytest.raises(UserError, match="has taken over"):
            ours.check()
    assert folder.read_json("_lease.json") == {"run": "another"}, (
        "a lost lease is left to its owner"
    )


@pytest.fixture
def stopped_server() -> Iterator[tuple[RunFolder, Callable[[], None], Callable[[], None]]]:
    """A folder in a bucket, and what stops and starts its server; what is in the bucket stays."""
    s3fs = pytest.importorskip("s3fs", reason="needs s3fs: pip install 'raycap[s3]'")
    moto_server = pytest.importorskip(
        "moto.server", reason="needs moto's server: pip install 'raycap[dev]'"
    )
    servers = [moto_server.ThreadedMotoServer(port=0, verbose=False)]
    servers[0].start()
    _, port = servers[0].get_host_and_port()

    def stop() -> None:
        servers.pop().stop()

    def start() -> None:
        servers.append(moto_server.ThreadedMotoServer(port=port, verbose=False))
        servers[0].start()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # The clients below would try again by themselves, more slowly.
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().makedirs("stops", exist_ok=True)
        yield RunFolder("s3://stops/out"), stop, start
        s3fs.S3FileSystem.clear_instance_cache()
    for server in servers:
        server.stop()


def test_a_store_that_restarts_costs_nothing(
    stopped_server: tuple[RunFolder, Callable[[], None], Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, stop, start = stopped_server
    monkeypatch.setattr(retry, "SECONDS_IN_ALL", 60.0)
    folder.stage("_staged/part", b"rows")
    tries: list[str] = []
    monkeypatch.setattr(
        retry.log,
        "warning",
        lambda *call: (tries.append(call[1]), start() if len(tries) == 1 else 0),
    )
    monkeypatch.setattr(lease, "SECONDS_TO_SETTLE", 0.0)
    with Lease(folder) as ours:
        for act in (
            lambda: folder.rename("_staged/part", "captions/part"),
            lambda: folder.write_json("facts.json", {"rows": 1}),
            lambda: folder.names("captions"),
            lambda: folder.reading("captions/part", lambda file: file.read()),
            lambda: folder.remove("_staged"),
            ours.check,
        ):
            tries.clear()
            stop()
            act()
            assert tries, "it failed first"
    assert (
        folder.names("captions") == ["captions/part"] and folder.read("captions/part") == b"rows"
    )
    assert folder.read_json("facts.json") == {"rows": 1}
    assert not folder.exists("_staged") and not folder.exists("_lease.json")


def test_a_store_that_stays_away_ends_the_run_in_words(
    stopped_server: tuple[RunFolder, Callable[[], None], Callable[[], None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, stop, start = stopped_server
    monkeypatch.setattr(retry, "SECONDS_IN_ALL", 0.0)
    stop()
    with pytest.raises(UserError, match="cannot write s3://stops/out: Could not connect"):
        folder.write("x", b"")
    start()
