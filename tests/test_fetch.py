"""Fetching, with a real server that misbehaves, real files, and addresses of every kind."""

import contextlib
import gc
import ipaddress
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from importlib.util import find_spec
from urllib.parse import quote

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server import BODY, ENDLESS, MISBEHAVIOURS, serving

from raycap.errors import UserError
from raycap.fetch import Fetch, Fetched, Fetcher, Trust, connections, files, host_queue
from raycap.fetch.addresses import why_refused
from raycap.fetch.budget import MemoryBudget
from raycap.fetch.connections import TimedSocket
from raycap.fetch.errors import scrubbed
from raycap.fetch.host_queue import HostQueue
from raycap.fetch.trust import ANYTHING, ONLY_WEB
from raycap.fetch.web import WebClient, asked_wait, forbids_ai

PUBLIC = "93.184.215.14"
OUTSIDE = "refused: a local path outside of the source's folder (--fetch.trust FOLDER permits it)"
CHAIN = (
    "refused: a chain of protocols, and {}:// is not trusted "
    "(--fetch.trust for each link permits it)"
)
STORE = "refused: s3://bucket is not where this source is (--fetch.trust s3://bucket permits it)"


def quick(**changes) -> Fetch:
    """Options for a server on loopback and tests that should not take long."""
    known = {
        "connect_timeout": 1.0,
        "read_timeout": 0.3,
        "deadline": 0.9,
        "backoff": 0.01,
        "allow_private": True,
    }
    return Fetch(**{**known, "max_bytes": 1_000_000, **changes})


def fetch(uri: str, trusted: Trust = ONLY_WEB, **changes) -> Fetched:
    with Fetcher(quick(**changes), trusted) as fetcher:
        return fetcher.fetch(uri)


@pytest.fixture(scope="module")
def server():
    with serving({"/photo one.jpg": b"photo"}) as running:
        yield running


# Answers


# What was declared; whether that is a picture is for the decoder to say.
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/good", BODY),
        (
            "/long",
            BODY[:1000],
        ),
        ("/gzip", BODY),
        ("/deflate", BODY),
        ("/raw-deflate", BODY),  # without zlib's header, as many servers send it
        ("/gzip-as-deflate", BODY),
        ("/interim", BODY),
        ("/made-up-encoding", BODY),
        ("/html", b"<html>not a picture</html>"),
        ("/fails-twice", BODY),
        ("/busy-once?wait=0", BODY),
        ("/short-once", BODY),
        ("/photo one.jpg", b"photo"),
        ("/redirect?to=/redirect%3Fto=/good", BODY),
    ],
)
def test_what_can_be_had_is_had(server, path, body):
    assert fetch(server.url(path)) == Fetched(body, "")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/status?code=404", "HTTP 404 Not Found"),
        ("/status?code=403", "HTTP 403 Forbidden"),
        ("/status?code=503", "HTTP 503 Service Unavailable"),
        ("/status?code=799", "HTTP 799"),
        ("/empty", "an empty body"),
        ("/drip-body", "no answer within 0.9 s (--fetch.deadline)"),
        ("/drip-headers", "no answer within 0.9 s (--fetch.deadline)"),
        ("/drip-chunks", "no answer within 0.9 s (--fetch.deadline)"),
        ("/endless", "larger than 1 MB (--fetch.max-bytes)"),
        ("/endless-chunks", "larger than 1 MB (--fetch.max-bytes)"),
        ("/contradicts-itself", "a Content-Length that contradicts itself"),
        ("/declares-too-much", "larger than 1 MB (--fetch.max-bytes)"),
        ("/bomb", "larger than 1 MB (--fetch.max-bytes)"),
        ("/short", "the connection was closed after 1,000 of 5,120 bytes"),
        ("/short-chunks", "the connection was closed before the end of the body"),
        ("/raw-deflate-bomb", "larger than 1 MB (--fetch.max-bytes)"),
        ("/not-gzip", "the body is not what its Content-Encoding says"),
        ("/not-deflate", "the body is not what its Content-Encoding says"),
        ("/switch", "HTTP 101 Switching Protocols"),
        ("/http2", "the server does not speak HTTP"),
        ("/half-gzip", "the body is not what its Content-Encoding says"),
        ("/gzip-and-more", "larger than 1 MB (--fetch.max-bytes)"),
        ("/brotli", "packed as br, which was not asked for"),
        ("/closes", "the connection was closed without an answer"),
        ("/not-http", "the server does not speak HTTP"),
        ("/loop", "more than 5 redirects (--fetch.max-redirects)"),
        (
            "/redirect?to=file:///etc/passwd",
            "refused: a redirect to 'file' (only http and https are followed)",
        ),
        (
            "/redirect?to=ftp://127.0.0.1/x",
            "refused: a redirect to 'ftp' (only http and https are followed)",
        ),
        ("/redirect?to=http://[::1/", "redirected to something that is not a URL"),
        ("/redirect?to=http://a b/", "not a URL: its host or port cannot be understood"),
        (
            "/busy-once?wait=3600",
            "HTTP 429 Too Many Requests; the next try would miss the deadline (--fetch.deadline)",
        ),
    ],
)
def test_each_misbehaviour_has_its_reason(server, path, reason):
    # For a busy machine.
    limits = {} if "deadline" in reason else {"deadline": 30.0, "read_timeout": 10.0}
    assert fetch(server.url(path), retries=1, **limits) == Fetched(b"", reason)


HEADERS_WITHOUT_END = "headers without end (more than 100, or more than 256 kB)"
TOO_LARGE = "larger than 0.2 MB (--fetch.max-bytes)"
ENDLESS_FRAMING = "a body framed without end (tiny chunks, or trailers)"
BAD_CHUNK = "a chunk of the body has no valid size"


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("status-line", HEADERS_WITHOUT_END),
        ("header-line", HEADERS_WITHOUT_END),
        ("headers", HEADERS_WITHOUT_END),
        ("long-headers", HEADERS_WITHOUT_END),
        ("no-headers", HEADERS_WITHOUT_END),
        ("continue", HEADERS_WITHOUT_END),
        ("early-hints", HEADERS_WITHOUT_END),
        ("body", TOO_LARGE),
        ("body-of-negative-length", TOO_LARGE),
        ("negative-chunk", BAD_CHUNK),
        ("odd-chunk", BAD_CHUNK),
        ("malformed-chunk", BAD_CHUNK),
        ("huge-chunk", TOO_LARGE),
        ("chunk-beyond-numbers", BAD_CHUNK),
        ("chunk-size", BAD_CHUNK),
        ("chunk-extension", BAD_CHUNK),
        ("small-chunks", ENDLESS_FRAMING),
        ("trailers", ENDLESS_FRAMING),
        ("trailer-line", HEADERS_WITHOUT_END),
        ("gzip", TOO_LARGE),
        ("error-page", "HTTP 404 Not Found"),
    ],
)
def test_an_answer_without_end_costs_no_memory_and_few_bytes(what, reason):
    assert _cost_of_endless(what) == (reason, 1)


@pytest.mark.parametrize("what", ENDLESS)
def test_bytes_are_capped_at_the_socket_whatever_the_parser_does(what, monkeypatch):
    """With the standard library's parser, which reads to the end after a negative chunk size."""
    _trust_responses(monkeypatch)
    _cost_of_endless(what)


def _trust_responses(monkeypatch):
    """Leaves out the checks of responses, but not the count of bytes."""
    for name in ("_read_status", "_read_next_chunk_size"):
        monkeypatch.delattr(connections.CheckedResponse, name)
    for name in ("_LONGEST_LINE", "_MOST_HEADERS"):
        monkeypatch.setattr(connections, name, sys.maxsize - 1)


def _cost_of_endless(what):
    """Fetches an endless response and checks the cost; returns the reason and the requests."""
    with serving() as server:
        tracemalloc.start()
        try:
            fetched = fetch(
                server.url(f"/endless-{what}"),
                retries=0,
                max_bytes=200_000,
                deadline=30.0,
                read_timeout=10.0,
            )
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert fetched.data == b"" and "deadline" not in fetched.error
    assert peak < 8_000_000
    assert server.sent < 32_000_000  # most of it never left the buffers of the two sockets
    return fetched.error, server.asked.total()


def test_the_cap_holds_under_tls(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    _trust_responses(monkeypatch)
    with serving(certificate=certificate) as server:
        error = fetch(
            server.url("/endless-negative-chunk", "localhost"), retries=0, deadline=30.0
        ).error
    assert error == ENDLESS_FRAMING
    assert server.sent < 32_000_000


@pytest.mark.parametrize(
    ("content_range", "reason"),
    [
        ("bytes 0-5119/5120", ""),
        ("Bytes 0-5119/5120", ""),
        (
            "bytes 0-5119/9000",
            "HTTP 206 Partial Content, which was not asked for: 5,120 of 9,000 bytes",
        ),
        (
            "bytes 100-5219/5220",
            "HTTP 206 Partial Content, which was not asked for: 5,120 of 5,220 bytes",
        ),
        (
            "bytes 0-8999/9000",
            "HTTP 206 Partial Content, which was not asked for: 5,120 of 9,000 bytes",
        ),
        (
            "bytes 0-5119/*",
            "HTTP 206 Partial Content, which was not asked for, without saying which part",
        ),
        ("", "HTTP 206 Partial Content, which was not asked for, without saying which part"),
        (
            "nonsense",
            "HTTP 206 Partial Content, which was not asked for, without saying which part",
        ),
    ],
)
def test_a_part_is_no_picture_and_a_whole_part_is(server, content_range, reason):
    url = server.url("/partial?range=" + quote(content_range))
    assert fetch(url) == Fetched(b"" if reason else BODY, reason)


@pytest.mark.parametrize(
    ("tags", "directive"),
    [
        ("noai", "noai"),
        ("NoImageAI", "noimageai"),
        ("noindex, nofollow ,noai", "noai"),
        ("noindex|noimageai", "noimageai"),
        ("raycap: noai", "noai"),
        ("RayCap : noindex, noimageai", "noimageai"),
        ("my-job: noai", "noai"),
        ("*: noai", "noai"),
        ("otherbot: noindex|noai", "noai"),
        ("noai, otherbot: noindex", "noai"),
        ("otherbot: noindex, raycap: noai", "noai"),
        ("unavailable_after: Saturday, 25-Jun-30 15:00:00 PST, noai", "noai"),
        ("max-snippet: 5, noai", "noai"),
        ("noindex", ""),
        ("noaid", ""),
        ("otherbot: noai", ""),
        ("otherbot: noindex, noai", ""),
        ("max-snippet: noai", ""),
        (":::, ,noai:", ""),
    ],
)
def test_servers_that_keep_ai_away_are_obeyed(server, tags, directive):
    url = server.url("/robots?is=" + quote(tags))
    agent = "my-job/2.0 (me@example.org)"
    reason = (
        f"the server forbids it: X-Robots-Tag {directive} (--fetch.ignore-robots-tag fetches it)"
    )
    assert fetch(url, user_agent=agent) == (
        Fetched(b"", reason) if directive else Fetched(BODY, "")
    )
    assert fetch(url, user_agent=agent, ignore_robots_tag=True) == Fetched(BODY, "")


@given(st.text())
def test_any_robots_tag_is_understood_or_ignored(header):
    assert forbids_ai([header], {"raycap"}) in ("", "noai", "noimageai")


def test_a_kept_connection_that_the_server_closed_costs_no_row():
    with (
        serving() as server,
        Fetcher(quick(retries=0, deadline=30.0, read_timeout=10.0), ONLY_WEB) as fetcher,
    ):
        urls = [server.url(f"/once-a-connection?number={number}") for number in range(8)]
        for _ in range(3):  # each connection is used twice: the second request meets the close
            assert fetcher.fetch_all(urls) == [Fetched(BODY, "")] * 8
        assert max(server.asked.values()) > 3  # so some requests did meet it


def test_a_connection_that_breaks_within_an_answer_is_not_taken_for_a_stale_one():
    with serving() as server, Fetcher(quick(retries=0, deadline=30.0), ONLY_WEB) as fetcher:
        url = server.url("/once-a-connection?then=HTTP")
        assert fetcher.fetch(url) == Fetched(BODY, "")
        assert fetcher.fetch(url) == Fetched(b"", "the server does not speak HTTP")
        assert server.asked.total() == 2


def test_a_new_connection_that_is_closed_at_once_is_not_tried_twice(server):
    assert (
        fetch(server.url("/closes?once"), retries=0).error
        == "the connection was closed without an answer"
    )
    assert server.asked["/closes?once"] == 1


def test_headers_that_cannot_be_parsed_write_nothing_to_the_log(server, caplog):
    assert fetch(server.url("/odd-headers?token=hunter2")).data == BODY
    assert not caplog.records


def test_silence_is_given_up(server):
    assert (
        fetch(server.url("/silent"), retries=0).error == "no byte for 0.3 s (--fetch.read-timeout)"
    )
    assert fetch(server.url("/silent")).error in (
        "no answer within 0.9 s (--fetch.deadline)",
        "no byte for 0.3 s (--fetch.read-timeout); "
        "the next try would miss the deadline (--fetch.deadline)",
    )


@pytest.mark.parametrize(
    ("path", "times"), [("/status?code=500", 4), ("/short?", 4), ("/status?code=410", 1)]
)
def test_only_what_may_pass_is_tried_again(server, path, times):
    fetch(server.url(path), retries=3)
    assert server.asked[path] == times


def test_a_connection_is_kept_for_the_next_picture(server, monkeypatch):
    made = []
    connect = TimedSocket.connect
    monkeypatch.setattr(
        TimedSocket, "connect", lambda self, where: made.append(where) or connect(self, where)
    )
    with Fetcher(quick(), ONLY_WEB) as fetcher:
        for path in ("/good", "/status?code=404", "/redirect?to=/good", "/gzip"):
            fetcher.fetch(server.url(path))
    assert len(made) == 1


def test_what_is_sent_to_a_server(server):
    told = fetch(
        server.url("/echo-headers").replace("//", "//me:p%40ss@"),
        user_agent="my-job (me@example.org)",
    )
    assert b"User-Agent: my-job (me@example.org)" in told.data
    assert b"Authorization: Basic bWU6cEBzcw==" in told.data
    assert b"Accept-Encoding: identity" in told.data


def test_proxies_of_the_environment_are_not_used(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert fetch(server.url("/good")).data == BODY


@pytest.mark.parametrize(
    "path", ["/status?code=404&token=hunter2", "/short?token=hunter2", "/endless?token=hunter2"]
)
def test_reasons_give_no_secrets_away(server, path):
    error = fetch(server.url(path).replace("//", "//user:swordfish@")).error
    assert error and "hunter2" not in error and "swordfish" not in error and "user" not in error


def test_quoted_urls_lose_what_may_be_secret():
    text = "cannot read https://me:p@ss@host/a.jpg?X-Signature=abc&b=1 (404)"
    assert scrubbed(text) == "cannot read https://host/a.jpg (404)"


def test_retry_after_is_seconds_or_a_date():
    soon = datetime.now(UTC) + timedelta(seconds=100)
    assert 90 < asked_wait(format_datetime(soon, usegmt=True)) <= 100
    assert asked_wait(format_datetime(soon - timedelta(days=1), usegmt=True)) == 0
    assert (asked_wait("7"), asked_wait(None), asked_wait("whenever")) == (7, 0, 0)


@given(st.text())
def test_any_retry_after_is_understood_or_ignored(header):
    assert asked_wait(header) >= 0


# Where connections may go


@pytest.mark.parametrize(
    ("host", "address", "kind"),
    [
        ("127.0.0.1", "127.0.0.1", "a loopback address"),
        ("127.1", "127.0.0.1", "a loopback address"),
        ("0x7f000001", "127.0.0.1", "a loopback address"),
        ("2130706433", "127.0.0.1", "a loopback address"),
        ("localhost", None, "a loopback address"),
        ("localhost.", None, "a loopback address"),
        ("user@localhost", None, "a loopback address"),
        ("example.org@127.0.0.1", "127.0.0.1", "a loopback address"),
        ("[::ffff:127.0.0.1]", "::ffff:127.0.0.1", "a loopback address"),
        ("0.0.0.0", "0.0.0.0", "an unspecified address"),
        ("169.254.169.254", "169.254.169.254", "a link-local address"),
        ("10.0.0.5", "10.0.0.5", "a private address"),
        ("[fd00:ec2::254]", "fd00:ec2::254", "a private address"),
    ],
)
def test_private_addresses_are_refused_however_they_are_written(server, host, address, kind):
    before = server.asked.total()
    error = fetch(f"http://{host}:{server.server_port}/good", allow_private=False).error
    assert error.startswith(f"refused: {address or ''}") and error.endswith(
        f" is {kind} (--fetch.allow-private permits it)"
    )
    assert server.asked.total() == before


def _answers(monkeypatch, *answers):
    """Makes look-ups return `answers`, each a list of addresses; returns the looked-up names."""
    names, coming = [], iter(answers)

    def look_up(host, port, *_, **__):
        names.append(host)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in next(coming)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return names


def _dialled(monkeypatch):
    """Let no connection leave the machine; returns the addresses that were to be connected to."""
    dialled = []

    def connect(self, where):
        dialled.append(where[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(TimedSocket, "connect", connect)
    return dialled


def test_a_name_that_turns_private_after_the_check_gains_nothing(monkeypatch):
    names, dialled = _answers(monkeypatch, [PUBLIC], ["127.0.0.1"]), _dialled(monkeypatch)
    error = fetch("http://rebinding.example/", allow_private=False).error
    # The first answer was checked and used; the second try looked up, checked and refused.
    assert dialled == [PUBLIC]
    assert names == ["rebinding.example"] * 2
    assert error == "refused: 127.0.0.1 is a loopback address (--fetch.allow-private permits it)"


def test_private_answers_among_public_ones_are_passed_over(monkeypatch):
    _answers(monkeypatch, ["10.0.0.1", PUBLIC, "127.0.0.1"])
    dialled = _dialled(monkeypatch)
    assert (
        "no connection to mixed.example"
        in fetch("http://mixed.example/", allow_private=False, retries=0).error
    )
    assert dialled == [PUBLIC]


@pytest.mark.parametrize(
    ("address", "kind"), [("127.0.0.2", "loopback"), ("169.254.169.254", "link-local")]
)
def test_a_redirect_to_a_private_address_is_refused(server, monkeypatch, address, kind):
    """The first hop is let through as if 127.0.0.1 were public; the second is not."""
    monkeypatch.setattr(
        "raycap.fetch.connections.why_refused",
        lambda place: "" if place == "127.0.0.1" else why_refused(place),
    )
    error = fetch(
        server.url(f"/redirect?to=http://{address}:{server.server_port}/"), allow_private=False
    ).error
    assert error == f"refused: {address} is a {kind} address (--fetch.allow-private permits it)"


def _stands_for_ipv4(address):
    return any(
        address in ipaddress.ip_network(network) for network in ("::ffff:0:0/96", "64:ff9b::/96")
    )


@given(st.ip_addresses().filter(lambda address: not _stands_for_ipv4(address)))
def test_what_python_calls_special_is_refused(address):
    special = (
        address.is_private or address.is_multicast or address.is_reserved or address.is_unspecified
    )
    if special or address.is_link_local or not address.is_global:
        assert why_refused(str(address))


@given(st.ip_addresses(v=4))
def test_an_address_in_disguise_is_judged_as_itself(address):
    for prefix in ("::ffff:", "64:ff9b::"):
        assert why_refused(f"{prefix}{address}") == why_refused(str(address))
    assert why_refused(str(ipaddress.IPv6Address((0x2002 << 112) | (int(address) << 80))))


def test_public_addresses_pass_and_scoped_ones_do_not():
    assert why_refused("fe80::1%1") == "a link-local address"
    assert [
        why_refused(a) for a in (PUBLIC, "1.1.1.1", "2606:4700::1111", "2a00:1450:4001::1")
    ] == [""] * 4


# URLs and other URIs


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://nowhere.invalid/x.jpg", "the host name nowhere.invalid does not resolve"),
        (f"http://{'a' * 70}.example/", f"the host name {'a' * 70}.example does not resolve"),
        ("http:///x.jpg", "not a URL: no host in it"),
        ("http://", "not a URL: no host in it"),
        ("http://a b/", "not a URL: its host or port cannot be understood"),
        ("http://a:99999/", "not a URL: its host or port cannot be understood"),
        ("http://[::1/", "not a URL: its host or port cannot be understood"),
        (f"http://{'a.' * 200}example/", "not a URL: its host name is too long"),
        ("http://example.org/\r\nHost: other", "a control character in the URL"),
        ("", "an empty URI"),
        ("data:image/png;base64,AAAA", "refused: a data: URI (pictures inside URIs are not read)"),
        ("ftp://example.org/x", "refused: the scheme ftp (--fetch.trust ftp://... permits it)"),
        (
            "github://org:repo@/x",
            "refused: the scheme github (--fetch.trust github://... permits it)",
        ),
        ("simplecache::s3://bucket/x", CHAIN.format("simplecache")),
        ("s3://bucket/x::file:///etc/passwd", STORE),
        ("memory://x", "refused: the scheme memory (--fetch.trust memory://... permits it)"),
        ("file:///etc/passwd", OUTSIDE),
        ("FILE:/etc/passwd", OUTSIDE),
        ("local:///etc/passwd", OUTSIDE),
        ("/etc/passwd", OUTSIDE),
    ],
)
def test_a_list_that_anyone_wrote_can_name_only_the_web(uri, reason):
    assert fetch(uri, retries=0) == Fetched(b"", reason)


@pytest.mark.skipif(find_spec("s3fs") is not None, reason="s3fs is installed: nothing is missing")
def test_a_missing_package_is_named():
    error = fetch("s3://bucket/x", trust=("s3://bucket",)).error
    assert error == "s3:// needs a package that is missing: pip install 'raycap[s3]'"


@pytest.fixture(scope="module")
def stubborn():
    with Fetcher(quick(retries=0), ONLY_WEB) as fetcher:
        yield fetcher


@settings(max_examples=150, deadline=None)
@given(
    st.text()
    | st.text().map("http://127.0.0.1:9/".__add__)
    | st.text(min_size=1).map("http://".__add__)
)
def test_no_text_makes_it_raise(stubborn, uri):
    def no_names(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    with pytest.MonkeyPatch.context() as patch:
        # Nothing that hypothesis thinks of is to be asked for.
        patch.setattr(socket, "getaddrinfo", no_names)
        fetched = stubborn.fetch(uri)
    assert fetched.data == b"" and fetched.error
    fetched.error.encode()  # a reason must fit into a table


# Files and stores


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a b%20c.jpg").write_bytes(BODY)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "large.jpg").write_bytes(bytes(1_000_001))
    (tmp_path / "link.jpg").symlink_to("gone.jpg")
    (tmp_path / "good-link.jpg").symlink_to("a b%20c.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    return tmp_path


@pytest.mark.parametrize("name", ["a b%20c.jpg", "good-link.jpg"])
@pytest.mark.parametrize("prefix", ["", "file://", "file:", "file://localhost"])
def test_files_are_read(folder, prefix, name):
    assert fetch(f"{prefix}{folder}/{name}", ANYTHING) == Fetched(BODY, "")
    assert fetch(f"{prefix}{folder}/{name}", allow_file=True) == Fetched(BODY, "")
    assert fetch(f"{prefix}{folder}/{name}", trust=(str(folder),)) == Fetched(BODY, "")


def test_a_quoted_file_uri_is_read(folder):
    assert fetch(f"file://{folder}/a%20b%2520c.jpg", ANYTHING) == Fetched(BODY, "")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gone.jpg", "no such file: "),
        ("link.jpg", "a link to a missing file: "),
        ("", "a directory, not a file: "),
        ("pipe.jpg", "not a regular file: "),
    ],
)
def test_a_file_that_is_none_has_its_reason(folder, name, reason):
    path = f"{folder}/{name}"
    assert fetch(path, ANYTHING) == Fetched(b"", reason + path)


def test_devices_caps_and_odd_names(folder):
    assert fetch("/dev/zero", ANYTHING).error == "not a regular file: /dev/zero"
    assert fetch(f"{folder}/empty.jpg", ANYTHING).error == "an empty file"
    assert fetch(f"{folder}/large.jpg", ANYTHING).error == "larger than 1 MB (--fetch.max-bytes)"
    assert "null byte" in fetch("a\0b", ANYTHING).error
    fetch("\udcff.jpg", ANYTHING).error.encode()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_has_its_reason(folder):
    (folder / "empty.jpg").chmod(0)
    assert (
        fetch(f"{folder}/empty.jpg", ANYTHING).error
        == f"no permission to read: {folder}/empty.jpg"
    )


def test_stores_are_read_through_fsspec():
    store = fsspec.filesystem("memory")
    store.pipe(
        {"/fetch/a.jpg": BODY, "/fetch/large.jpg": bytes(1_000_001), "/fetch/empty.jpg": b""}
    )
    try:
        assert fetch("memory://fetch/a.jpg", ANYTHING) == Fetched(BODY, "")
        assert (
            fetch("memory://fetch/large.jpg", ANYTHING).error
            == "larger than 1 MB (--fetch.max-bytes)"
        )
        assert fetch("memory://fetch/empty.jpg", ANYTHING).error == "an empty file"
        assert (
            fetch("memory://fetch/b.jpg?key=1", ANYTHING).error
            == "no such file: memory://fetch/b.jpg"
        )
        assert "nosuch" in fetch("nosuch://x", ANYTHING).error
    finally:
        store.rm("/fetch", recursive=True)


class HangingStore(fsspec.AbstractFileSystem):
    """A store that never answers."""

    protocol = "hanging"

    def cat_file(self, path, start=None, end=None, **kwargs):
        threading.Event().wait()


def test_what_takes_no_timeout_is_left_behind(monkeypatch):
    fsspec.register_implementation("hanging", HangingStore, clobber=True)
    assert (
        fetch("hanging://x", ANYTHING, deadline=0.1).error
        == "no answer within 0.1 s (--fetch.deadline)"
    )
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: threading.Event().wait())
    error = fetch("http://slow-name.example/", connect_timeout=0.1, retries=0).error
    assert error == "no connection to slow-name.example in time (--fetch.connect-timeout)"
    assert (
        fetch("http://slow-name.example/", deadline=0.1).error
        == "no answer within 0.1 s (--fetch.deadline)"
    )


# Many at once


def test_hundreds_in_flight_keep_their_order_and_the_hosts_limit(server):
    uris = [server.url(f"/slow?number={number}") for number in range(300)]
    with Fetcher(quick(threads=64, per_host=12, deadline=20, read_timeout=5), ONLY_WEB) as fetcher:
        answers = fetcher.fetch_all(uris)
    assert [answer.data.decode() for answer in answers] == [
        f"/slow?number={number}" for number in range(300)
    ]
    assert 2 < server.most_at_once <= 12


def test_a_slow_host_does_not_keep_others_waiting(monkeypatch):
    """Four threads, and a host that waits with each response until the other has sent all."""
    done = threading.Event()

    def count(handler):
        handler.whole(BODY)
        if sum(path.startswith("/count") for path in handler.server.order) == 30:
            done.set()

    monkeypatch.setitem(
        MISBEHAVIOURS, "/wait", lambda handler: handler.whole(BODY, 200 if done.wait(9) else 500)
    )
    monkeypatch.setitem(MISBEHAVIOURS, "/count", count)
    options = quick(threads=4, per_host=2, deadline=20, read_timeout=10, retries=0)
    with serving() as server, Fetcher(options, ONLY_WEB) as fetcher:
        slow = [server.url(f"/wait?{number}") for number in range(20)]
        answers = fetcher.fetch_all(
            slow + [server.url(f"/count?{number}", "localhost") for number in range(30)]
        )
    assert {answer.error for answer in answers} == {""}


def test_a_back_off_holds_no_thread():
    with serving() as server, Fetcher(quick(threads=1, deadline=10), ONLY_WEB) as fetcher:
        answers = fetcher.fetch_all(
            [server.url("/busy-once?wait=1"), server.url("/good?1"), server.url("/good?2")]
        )
        assert [answer.error for answer in answers] == ["", "", ""]
        assert server.order == ["/busy-once?wait=1", "/good?1", "/good?2", "/busy-once?wait=1"]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40),
    st.integers(1, 3),
)
@settings(deadline=None)
def test_the_host_queue_loses_nothing_and_keeps_the_limit(items, per_host):
    hosts: HostQueue[int] = HostQueue(per_host, host_rate=0)
    for number, (host, waits) in enumerate(items):
        hosts.put(host, number, wait=0.001 if waits else 0.0)
    taken, out = [], []
    while len(taken) < len(items):
        if len(out) >= per_host:  # then one host may be full: give the oldest place back
            hosts.done(out.pop(0))
        host, number = hosts.take()
        out.append(host)
        taken.append(number)
        assert items[number][0] == host and out.count(host) <= per_host
    assert sorted(taken) == list(range(len(items)))


def test_a_rate_keeps_its_host_back_and_no_other():
    hosts: HostQueue[str] = HostQueue(per_host=9, host_rate=2.0)
    hosts.put("a", "first of a")
    hosts.put("a", "second of a")
    assert hosts.take() == ("a", "first of a")
    hosts.put("b", "first of b")  # came last, and yet a's second has to wait half a second
    assert [hosts.take(), hosts.take()] == [("b", "first of b"), ("a", "second of a")]


def test_a_worker_ends_even_if_the_queue_is_stopped_in_its_own_thread(monkeypatch):
    """The garbage collector may run a finalizer between the check and the wait of `take`."""
    monkeypatch.setattr(host_queue, "SECONDS_BETWEEN_LOOKS", 0.01)
    hosts: HostQueue[str] = HostQueue(per_host=1, host_rate=0)
    monkeypatch.setattr(hosts, "_run_timers", lambda: hosts.stop() or float("inf"))
    assert hosts.take() is None


def test_a_closed_fetcher_is_reported(server):
    fetcher = Fetcher(quick(), ONLY_WEB)
    assert fetcher.fetch(server.url("/good")).data
    fetcher.close()
    assert fetcher.fetch(server.url("/good")) == Fetched(b"", "the fetcher was closed")


def test_a_dropped_fetcher_is_freed_with_its_threads(server):
    def own():
        return [thread for thread in threading.enumerate() if thread not in before]

    before = threading.enumerate()
    fetcher = Fetcher(quick(threads=2), ONLY_WEB)
    fetcher.fetch_all([server.url("/good")] * 4)
    workers = [thread for thread in own() if thread.name == "raycap-fetch"]
    watch = weakref.ref(fetcher)
    del fetcher
    while watch() is not None:  # a worker may still be about to let go of its download
        gc.collect()
    for worker in workers:
        worker.join()
    assert len(workers) == 2


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A self-add_maker certificate for localhost, with its key, in one PEM file."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl command to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"),
            *("-keyout", folder / "key.pem", "-out", folder / "certificate.pem"),
        ],
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_bytes((folder / "key.pem").read_bytes() + (folder / "certificate.pem").read_bytes())
    return both


def test_a_certificate_that_nobody_vouches_for_is_refused(certificate):
    with serving(certificate=certificate) as server:
        error = fetch(server.url("/good", "localhost")).error
        assert (
            error.startswith("the certificate of localhost is not trusted: self")
            and not server.asked
        )


def test_tls_checks_the_hosts_name_and_keeps_the_deadline(certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    with serving(certificate=certificate) as server:
        assert fetch(server.url("/good", "localhost")) == Fetched(BODY, "")
        assert server.names == ["localhost"]
        assert (
            "certificate of 127.0.0.1 is not trusted: IP address mismatch"
            in fetch(server.url("/good")).error
        )
        assert (
            fetch(server.url("/drip-body", "localhost")).error
            == "no answer within 0.9 s (--fetch.deadline)"
        )


def test_a_handshake_that_never_comes_is_given_up(server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = fetch(
            f"https://127.0.0.1:{silent.getsockname()[1]}/", connect_timeout=0.2, retries=0
        ).error
    assert error.startswith("no ")


# Options


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"deadline": 0},
            {"threads": 0},
            {"retries": -1},
            {"max_bytes": 0},
            {"read_timeout": float("nan")},
        ),
        *({"host_rate": -1.0}, {"user_agent": "a\r\nHost: b"}),
    ],
)
def test_impossible_options_are_refused_by_name(change):
    with pytest.raises(UserError, match=next(iter(change)).replace("_", "-")):
        Fetch(**change)


# Many bodies, bounded in memory


def test_each_body_comes_with_its_place(server, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"b")
    uris = [
        server.url("/slow"),
        str(tmp_path / "a.jpg"),
        "",
        server.url("/empty"),
        str(tmp_path / "b.jpg"),
        "x:",
    ]
    with Fetcher(quick(), ANYTHING) as fetcher:
        answers = dict(fetcher.fetch_each(uris))
        assert [answers[place] for place in range(len(uris))] == fetcher.fetch_all(uris)
        assert list(fetcher.fetch_each([])) == []


def test_local_files_are_read_one_at_a_time_in_order(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.jpg" for number in range(20)]
    for path in paths:
        path.write_bytes(path.name.encode())
    read = []
    whole = files._read_local
    monkeypatch.setattr(
        files, "_read_local", lambda path, *more: read.append(path) or whole(path, *more)
    )
    with Fetcher(quick(), ANYTHING) as fetcher:
        for place, fetched in fetcher.fetch_each([str(path) for path in paths]):
            assert fetched.data == paths[place].name.encode()
            assert read == [str(path) for path in paths[: place + 1]]


@pytest.mark.parametrize("bytes_in_memory", [1, 100_000, 2_000_000])
def test_bodies_in_memory_stay_within_the_budget(bytes_in_memory, monkeypatch):
    """However slow the caller is: bytes are counted from the first chunk on, in all threads."""
    body = 900_000
    budgets, most_held = [], []

    class Watched(MemoryBudget):
        def __init__(self, limit):
            super().__init__(limit)
            budgets.append(self)

    monkeypatch.setattr("raycap.fetch.MemoryBudget", Watched)
    whole = WebClient._body

    def spied(web, response, grow_to):
        def note(size):
            waited = grow_to(size)
            most_held.append(budgets[0]._held)
            return waited

        return whole(web, response, note)

    monkeypatch.setattr(WebClient, "_body", spied)
    options = quick(threads=16, deadline=20, read_timeout=20)
    with serving({f"/{number}": bytes([number]) * body for number in range(30)}) as server:
        uris = [server.url(f"/{number}") for number in range(30)]
        with Fetcher(options, ONLY_WEB) as fetcher:
            for place, fetched in fetcher.fetch_each(uris, bytes_in_memory):
                assert fetched == Fetched(bytes([place]) * body, "")
                time.sleep(0.005)
    assert budgets[0]._held == 0
    assert len(most_held) > 30 and max(most_held) <= bytes_in_memory + body


# Waits before a request, and in the midst of its body.
@pytest.mark.parametrize("bytes_in_memory", [1, 300_000])
def test_waiting_for_memory_costs_nothing_of_the_deadline(bytes_in_memory):
    with serving({f"/{number}": bytes(900_000) for number in range(4)}) as server:
        uris = [server.url(f"/{number}") for number in range(4)]
        with Fetcher(quick(deadline=2, read_timeout=2, retries=0), ONLY_WEB) as fetcher:
            for _, fetched in fetcher.fetch_each(uris, bytes_in_memory):
                assert fetched.error == ""
                assert fetched.seconds < 2
                time.sleep(0.8)


def test_fetches_that_fail_give_their_memory_back(server):
    uris = [
        server.url(path)
        for path in ["/endless", "/short", "/long", "/declares-too-much", "/fails-twice"] * 5
    ]
    uris += [server.url("/redirect?to=/good")] * 5
    with Fetcher(quick(max_bytes=100_000, deadline=10, retries=2), ONLY_WEB) as fetcher:
        answers = dict(fetcher.fetch_each(uris, 1))
        alone = {uri: fetcher.fetch(uri) for uri in set(uris) if "twice" not in uri}
    assert all(answers[place] == alone[uri] for place, uri in enumerate(uris) if uri in alone)
    assert all(
        answers[place].data == BODY
        for place, uri in enumerate(uris)
        if "twice" in uri or "to=" in uri
    )


def test_a_caller_that_stops_early_leaves_no_thread_that_waits(server):
    before = set(threading.enumerate())  # other tests' fetchers may still be open
    fetcher = Fetcher(quick(threads=4), ONLY_WEB)
    for _ in fetcher.fetch_each([server.url("/good")] * 40, 1):
        break
    assert fetcher.fetch(server.url("/good")).data == BODY
    assert server.asked["/good"] < 1000
    started = set(threading.enumerate()) - before
    own = [thread for thread in started if thread.name == "raycap-fetch"]
    assert len(own) == 4
    fetcher.close()
    del fetcher
    for thread in own:
        thread.join()


@pytest.mark.parametrize(
    "size", [0, 1, 2**21 - 1, 2**21, 2**21 + 1, 5_000_000, 6_000_000, 6_000_001]
)
def test_objects_of_a_store_are_whole_whatever_their_size(size):
    body = bytes(range(251)) * (size // 251 + 1)
    with fsspec.open("memory://pieces/a.jpg", "wb") as file:
        file.write(body[:size])
    with Fetcher(quick(max_bytes=6_000_000, deadline=20), ANYTHING) as fetcher:
        [(_, fetched)] = fetcher.fetch_each(["memory://pieces/a.jpg"])
        assert fetched == fetcher.fetch("memory://pieces/a.jpg")
    assert fetched.data == (body[:size] if size <= 6_000_000 else b"")


def test_bytes_that_nobody_asked_for_are_not_the_next_answer():
    """A server that sends a second answer to one request, when the connection is kept already."""

    def answer(body: bytes) -> bytes:
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)

    sent = threading.Semaphore(0)

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(ConnectionError):
            while request := connection.recv(65536):
                connection.sendall(answer(request.split()[1]))
                time.sleep(0.05)
                connection.sendall(answer(b"forged"))
                sent.release()

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        with Fetcher(quick(), ONLY_WEB) as fetcher:
            for name in ("/first", "/second", "/third"):
                url = f"http://127.0.0.1:{listening.getsockname()[1]}{name}"
                assert fetcher.fetch(url) == Fetched(name.encode(), "")
                sent.acquire()
