"""Stores for the fault campaign: a local disk, S3 as moto serves it, and Azure as Azurite does.

    python benchmarks/fault_stores.py 5000              # moto; two writers of one key take turns
    python benchmarks/fault_stores.py 5000 --ignore     # a store that ignores If-None-Match
    python benchmarks/fault_stores.py 5000 --refuse     # one that refuses requests that have it

moto checks If-None-Match and writes the object in two steps, so two writers may both succeed. A
lock around each request that writes makes it one step, as it is on Amazon S3.

A program can ask this moto to fail for some time (`begin_outage`), and which requests came.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS_TO_START = 60.0
# The account of Azurite, which everybody knows.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
# What requests do. All in the log of a Delta table are of the last two kinds: reads, and commits.
KINDS = ("list", "get", "put", "create", "delete", "log", "commit")
# Paths of requests that are for this program, not for moto.
OUTAGE, NO_OUTAGE, REQUESTS = "/-outage", "/-no-outage", "/-requests"
REFUSALS = {"403": ("403 Forbidden", "AccessDenied"), "503": ("503 Slow Down", "SlowDown")}


@dataclass(frozen=True)
class Store:
    """Where outputs are written, and the variables that name the server. They are set in this
    process, too."""

    uri: str
    environment: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def moto_bucket(*flags: str) -> Iterator[Store]:
    """A bucket on a server of its own."""
    port = free_port()
    with running([sys.executable, __file__, str(port), *flags], port):
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        os.environ |= environment
        import s3fs  # type: ignore[import-untyped]

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("faults")
        yield Store("s3://faults", environment)


@contextlib.contextmanager
def azurite_container(folder: Path) -> Iterator[Store]:
    """A container on a server of its own. It needs adlfs, and `npm install azurite`: AZURITE names
    the program if it is not in the PATH."""
    program = os.environ.get("AZURITE") or shutil.which("azurite-blob")
    assert program, "install Azurite (npm install azurite), and name it: AZURITE=.../azurite-blob"
    port = free_port()
    command = [program, "--silent", "--blobPort", str(port), "--location", str(folder)]
    with running([*command, "--skipApiVersionCheck", "--loose"], port):
        address = f"http://127.0.0.1:{port}"
        endpoint = f"BlobEndpoint={address}/{AZURE_ACCOUNT}"
        account = f"AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY}"
        environment = {
            "AZURE_STORAGE_CONNECTION_STRING": f"DefaultEndpointsProtocol=http;{account};"
            f"{endpoint};",
            "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
            "AZURE_STORAGE_ALLOW_HTTP": "true",
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": address,
        }
        os.environ |= environment
        import adlfs  # type: ignore[import-not-found]

        adlfs.AzureBlobFileSystem().mkdir("faults")
        yield Store("az://faults", environment)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


@contextlib.contextmanager
def running(
    command: list[str], port: int, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """A server in a process of its own, which answers on this port. It inherits the environment,
    and gets the variables in `environment` too."""
    everything = {**os.environ, **(environment or {})}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=everything, **quiet) as server:  # type: ignore[call-overload]
        try:
            end = time.monotonic() + SECONDS_TO_START
            while not _answers(port):
                assert server.poll() is None and time.monotonic() < end, f"{command} has ended"
                time.sleep(0.1)
            yield
        finally:
            server.kill()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        return True
    return False


def begin_outage(address: str, kind: str, how: str, seconds: float, after: int = 0) -> None:
    """Requests of this kind fail, for so long from the first one on; `after` so many are answered
    before. How: "403" or "503"; or "silent", then they are carried out, but in place of an answer
    the connection is closed when the time is over."""
    asked = {"kind": kind, "how": how, "seconds": seconds, "after": after}
    _ask(address, f"{OUTAGE}?{urllib.parse.urlencode(asked)}")


def end_outages(address: str) -> dict[str, int]:
    """Returns how many requests of each kind have failed."""
    failed: dict[str, int] = _ask(address, NO_OUTAGE)
    return failed


def requests_since(address: str) -> list[tuple[str, str, str]]:
    """The requests since this was last called: kind, method, and the path after the bucket.
    Nothing is noted before the first call."""
    return [(kind, method, path) for kind, method, path in _ask(address, REQUESTS)]


def _ask(address: str, what: str) -> Any:
    with urllib.request.urlopen(f"{address}{what}") as answer:
        return json.load(answer)


@dataclass
class _Outage:
    how: str
    seconds: float
    after: int
    until: float | None = None  # once it has begun
    failed: int = 0

    def is_on(self) -> bool:
        """Called for each request of its kind."""
        self.after -= 1
        if self.after >= 0:
            return False
        if self.until is None:
            self.until = time.monotonic() + self.seconds
        is_on = time.monotonic() < self.until
        self.failed += is_on
        return is_on


Answer = Callable[[dict[str, Any], Any], Iterable[bytes]]


@dataclass
class Disturbed:
    """An S3 server that fails for some time when it is asked to, and that records its requests."""

    answer: Answer
    outages: dict[str, _Outage] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, request: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, path = request["REQUEST_METHOD"], request["PATH_INFO"]
        if path in (OUTAGE, NO_OUTAGE, REQUESTS):
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._told(path, request["QUERY_STRING"])).encode()]
        kind = kind_of(request)
        with self._lock:
            if self.requests is not None:
                self.requests.append((kind, method, path.lstrip("/").partition("/")[2]))
            outage = self.outages.get(kind)
            if outage is None or not outage.is_on():
                outage = None
        if outage is None:
            return self.answer(request, start)
        if outage.how in REFUSALS:
            request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0))
            status, code = REFUSALS[outage.how]
            start(status, [("Content-Type", "application/xml")])
            said = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
            return [said.encode()] if method != "HEAD" else []
        done = self.answer(request, lambda *head: None)
        assert outage.until is not None
        time.sleep(max(0.0, outage.until - time.monotonic()))
        request["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionError(f"not answered: {len(list(done))}")

    def _told(self, path: str, query: str) -> Any:
        with self._lock:
            if path == REQUESTS:
                seen, self.requests = self.requests or [], []
                return seen
            if path == NO_OUTAGE:
                failed = {kind: outage.failed for kind, outage in self.outages.items()}
                self.outages = {}
                return failed
            asked = dict(urllib.parse.parse_qsl(query))
            outage = _Outage(asked["how"], float(asked["seconds"]), int(asked["after"]))
            self.outages[asked["kind"]] = outage
            return None


def kind_of(request: Mapping[str, Any]) -> str:
    """One of KINDS."""
    method, query = request["REQUEST_METHOD"], urllib.parse.unquote(request["QUERY_STRING"])
    is_read = method in ("GET", "HEAD")
    if "_delta_log" in request["PATH_INFO"] or "_delta_log" in query:
        return "log" if is_read else "commit"
    if is_read:
        return "list" if "list-type=" in query else "get"
    if method == "DELETE" or (method == "POST" and query.startswith("delete")):
        return "delete"
    return "create" if "HTTP_IF_NONE_MATCH" in request else "put"


def serve(port: int, ignores_conditions: bool, refuses_conditions: bool) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    application = DomainDispatcherApplication(create_backend_app)
    writing = threading.Lock()

    def answer(request: dict[str, Any], start: Any) -> Any:
        if refuses_conditions and "HTTP_IF_NONE_MATCH" in request:
            start("501 Not Implemented", [("Content-Type", "application/xml")])
            return [b"<Error><Code>NotImplemented</Code><Message>A header</Message></Error>"]
        if ignores_conditions:
            request.pop("HTTP_IF_NONE_MATCH", None)
        if request["REQUEST_METHOD"] in ("GET", "HEAD"):
            return application(request, start)
        with writing:
            return application(request, start)

    run_simple("127.0.0.1", port, Disturbed(answer), threaded=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("port", type=int)
    parser.add_argument("--ignore", action="store_true", help="ignore If-None-Match")
    parser.add_argument("--refuse", action="store_true", help="refuse If-None-Match")
    chosen = parser.parse_args(arguments)
    serve(chosen.port, chosen.ignore, chosen.refuse)


if __name__ == "__main__":
    main()
