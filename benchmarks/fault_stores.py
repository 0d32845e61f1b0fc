"""Stores for the fault campaign: a local disk, S3 as moto serves it, and Azure as Azurite does.

    python benchmarks/fault_stores.py 5000              # moto; two writers of one key take turns
    python benchmarks/fault_stores.py 5000 --ignore     # a store that ignores If-None-Match
    python benchmarks/fault_stores.py 5000 --refuse     # one that refuses requests that have it

moto checks If-None-Match and writes the object in two steps, so two writers may both succeed. A
lock around each request that writes makes it one step, as it is on Amazon S3.
"""

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS_TO_START = 60.0
# The account of Azurite, which everybody knows.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


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
    with _server([sys.executable, __file__, str(port), *flags], port):
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
    with _server([*command, "--skipApiVersionCheck", "--loose"], port):
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
def _server(command: list[str], port: int) -> Iterator[None]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as server:  # type: ignore[call-overload]
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

    run_simple("127.0.0.1", port, answer, threaded=True)


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
