"""Captions per second of the endpoint captioner, from a server here that answers after some time.

    python benchmarks/endpoint.py [--seconds 4] [--in-flight 256] [--rounds 12] [--size 100000]

A server that takes 4 seconds for an answer gives 64 of them a second to 256 requests at a time.
The captioner should reach 0.95 of that. Then the server answers at once: the highest rate that the
client reaches on this machine. Pictures are random bytes of the size of a JPEG of 1024 pixels. The
server is a process of its own.
"""

import argparse
import asyncio
import multiprocessing
import resource
import time
from concurrent.futures import Future
from typing import Any

import aiohttp.web
import numpy as np
from json_figures import add_json, write_figures

from raycap.captioners import Prediction
from raycap.captioners.endpoint import Endpoint, EndpointOptions

ANSWER = {
    "model": "stub",
    "choices": [{"message": {"content": "a dog on a beach"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 900, "completion_tokens": 5},
}


def serve(seconds: float, port: Any) -> None:
    """Answers each chat request after so many seconds."""

    async def answer(request: aiohttp.web.Request) -> aiohttp.web.Response:
        await request.read()
        await asyncio.sleep(seconds)
        return aiohttp.web.json_response(ANSWER)

    async def run() -> None:
        app = aiohttp.web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/chat/completions", answer)
        runner = aiohttp.web.AppRunner(app, access_log=None)
        await runner.setup()
        site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        port.put(runner.addresses[0][1])
        await asyncio.sleep(1e6)

    asyncio.run(run())


def measure(seconds: float, in_flight: int, requests: int, size: int) -> tuple[float, float]:
    """Captions per second from the first request to the last answer, and processor time of this
    process for each."""
    context = multiprocessing.get_context("spawn")
    port: Any = context.Queue()
    server = context.Process(target=serve, args=(seconds, port), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{port.get()}/v1"
    options = EndpointOptions((url,), Endpoint(name="stub", in_flight=in_flight))
    picture = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    times: list[float] = []

    def note(answer: Future[Prediction]) -> None:
        assert answer.result().caption, answer.result().error
        times.append(time.monotonic())

    with options.open("", 1) as captioner:
        began, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        for number in range(requests):
            answer = captioner.submit(picture, {"sha256": f"{number}"})
            answer.add_done_callback(note)
        while len(times) < requests:
            time.sleep(0.01)
        now = resource.getrusage(resource.RUSAGE_SELF)
        cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    server.terminate()
    return requests / (times[-1] - began), cpu / requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--in-flight", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--at-once", type=int, default=4000, help="requests answered at once")
    add_json(parser)
    asked = parser.parse_args()
    best = asked.in_flight / asked.seconds
    rate, cpu = measure(asked.seconds, asked.in_flight, asked.rounds * asked.in_flight, asked.size)
    print(
        f"answers after {asked.seconds:g} s, {asked.in_flight} in flight: {rate:.1f} a second, "
        f"{rate / best:.3f} of {best:g}; {1000 * cpu:.2f} ms of processor time each"
    )
    write_figures(asked, {"share": rate / best})
    for size in (1000, asked.size):
        rate, cpu = measure(0, asked.in_flight, asked.at_once, size)
        print(
            f"answers at once, pictures of {size:,} bytes: {rate:.0f} a second, "
            f"{1000 * cpu:.2f} ms of processor time each"
        )


if __name__ == "__main__":
    main()
