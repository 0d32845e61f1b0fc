"""Requests and tokens per minute, of all workers together, while workers come and go."""

import asyncio
import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
from chat_server import MODEL, serving

from raycap.captioners.endpoint import Endpoint, EndpointOptions, members
from raycap.captioners.endpoint.limits import Bucket, Limiter
from raycap.captioners.endpoint.members import EXPIRY, LEASE, SECONDS_BETWEEN_BEATS, Members
from raycap.storage import RunFolder


def most_in_a_minute(sent: list[tuple[float, float]]) -> float:
    """The most units in any 60 seconds, of (time, units)."""
    sent = sorted(sent)
    most = total = 0.0
    start = 0
    for time, units in sent:
        total += units
        while sent[start][0] <= time - 60 + 1e-6:
            total -= sent[start][1]
            start += 1
        most = max(most, total)
    return most


def send(bucket: Bucket, units: float, share: float, until: float, held_up: float) -> list[float]:
    """The times at which a worker with much to do sends; now and then it is held up."""
    chance, now, sent = random.Random(1), 0.0, []
    while now < until:
        delay = bucket.delay(units, share, now)
        if delay:
            now += delay + chance.random() * held_up
        else:
            bucket.take(units)
            sent.append(now)
    return sent


@pytest.mark.parametrize("per_minute", [2, 7, 60, 600, 6000])
@pytest.mark.parametrize("workers", [1, 3, 20])
@pytest.mark.parametrize("held_up", [0.0, 0.05, 5.0])
def test_no_minute_has_more_than_the_limit(per_minute: int, workers: int, held_up: float) -> None:
    until, sent = 600.0, []
    for _ in range(workers):
        sent += send(Bucket(per_minute), 1, 1 / workers, until, held_up)
    most = most_in_a_minute([(time, 1.0) for time in sent])
    if per_minute >= 3 * workers:
        assert most <= per_minute + 1e-6
    else:  # so few requests of each, in any minute, cannot be kept by workers that do not talk
        assert most <= per_minute + workers
    if held_up < 1 and per_minute >= 20 * workers:
        assert len(sent) >= 0.9 * per_minute * until / 60, "and nearly so many are sent"


@pytest.mark.parametrize("size", [10, 900, 5000])
def test_tokens_per_minute(size: int) -> None:
    sent = send(Bucket(20_000), size, 1, 600, 0.05)
    assert most_in_a_minute([(time, size) for time in sent]) <= 20_000 + 1e-6
    assert size > 900 or len(sent) * size >= 0.9 * 200_000


def test_no_limit_and_no_share() -> None:
    assert Bucket(0).delay(1, 0.5, 7.0) == 0
    bucket = Bucket(60)
    assert bucket.delay(1, 0.0, 0.0) > 0 and bucket.delay(1, 0.0, 1e6) > 0, "nothing is earned"
    assert Bucket(60).delay(1, 1, 0.0) == 0, "who is alone begins at once"
    assert Bucket(60).delay(1, 0.5, 0.0) > 1


class Clock:
    """Time that stands still unless it is moved. A limiter's sleeps move it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 1e-3)


def test_the_guess_of_tokens_follows_what_answers_take(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)

    async def run(used: float | None, requests: int) -> list[tuple[float, float]]:
        limiter, sent = Limiter(0, 60_000, 1000, clock=clock), []
        for _ in range(requests):
            expected = await limiter.wait()
            sent.append((clock.now, used or expected))
            limiter.note(expected, used)
        return sent

    for used in (300.0, 3000.0):
        sent = asyncio.run(run(used, 400))
        # The first requests cost more than was guessed.
        assert most_in_a_minute(sent) <= 60_000 + 3000
        later = sent[100:]
        rate = used * (len(later) - 1) / (later[-1][0] - later[0][0]) * 60
        assert 0.9 * 60_000 < rate < 1.01 * 60_000
    assert len(asyncio.run(run(None, 100))) == 100, "a server that does not count"


def test_a_request_that_was_not_sent_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(asyncio, "sleep", clock.sleep)

    async def run() -> float:
        limiter, began = Limiter(60, 0, 0, clock=clock), clock.now
        for _ in range(100):
            limiter.pay_back(await limiter.wait())
        return clock.now - began

    assert asyncio.run(run()) == 0


class Worker:
    """One member, driven by the test: it beats when its time has come, unless it is suspended."""

    def __init__(self, folder: RunFolder, clock: Clock, phase: float) -> None:
        self.members, self.clock = Members(folder, clock), clock
        self.bucket = Bucket(PER_MINUTE)
        self.beats_at = clock.now + phase
        self.sent: list[float] = []

    def work(self) -> None:
        now = self.clock()
        if now >= self.beats_at:
            self.members.beat()
            self.beats_at = now + SECONDS_BETWEEN_BEATS
        share = self.members.share()
        if self.bucket.delay(1, share, now) == 0 and share:
            self.bucket.take(1)
            self.sent.append(now)


PER_MINUTE = 600


@pytest.mark.parametrize("seed", range(6))
def test_the_limit_holds_while_workers_come_and_go(seed: int, tmp_path: Path) -> None:
    chance, clock, folder = random.Random(seed), Clock(), RunFolder(str(tmp_path))
    living, gone = [Worker(folder, clock, 0.0)], []
    suspended: dict[Worker, float] = {}
    for step in itertools.count():
        clock.now += 0.1
        if step > 6000:
            break
        event = chance.random() if step < 4000 else 1.0
        if event < 0.004 and len(living) < 6:
            living.append(Worker(folder, clock, chance.random()))
        elif event < 0.006 and len(living) > 1:  # killed: its beat stays
            gone.append(living.pop(chance.randrange(len(living))))
        elif event < 0.007 and len(living) > 1:
            leaving = living.pop()
            leaving.members.leave()
            gone.append(leaving)
        elif event < 0.009:  # the machine sleeps, and comes back
            suspended[chance.choice(living)] = clock.now + chance.choice((3, 12, 25, 60))
        for worker in living:
            if suspended.get(worker, 0) <= clock.now:
                worker.work()
    sent = [(time, 1.0) for worker in (*living, *gone) for time in worker.sent]
    assert len(living) + len(gone) > 6 and suspended
    assert most_in_a_minute(sent) <= PER_MINUTE
    last = [time for time, _ in sent if time > clock.now - 60]
    assert len(last) > 0.9 * PER_MINUTE, "those that are left share all of it"


def test_shares_one_step_after_the_other(tmp_path: Path) -> None:
    clock, folder = Clock(), RunFolder(str(tmp_path))
    first, second = Members(folder, clock), Members(folder, clock)

    def let_beat(seconds: float, *who: Members) -> None:
        for _ in range(math.ceil(seconds / SECONDS_BETWEEN_BEATS)):
            clock.now += SECONDS_BETWEEN_BEATS
            for each in who:
                each.beat()

    assert first.share() == 0, "before it knows the others"
    first.beat()
    assert first.share() == 1, "a process without others begins at once"
    second.beat()
    assert second.share() == 0, "the first one does not know it yet"
    let_beat(LEASE, first, second)
    assert first.share() == second.share() == 0.5
    let_beat(LEASE, second)
    assert first.share() == 0, "its lease has ended"
    assert second.share() == 0.5, "which the second one does not know for sure"
    let_beat(SECONDS_BETWEEN_BEATS, first, second)
    assert second.share() == 1 / 3, "the earlier life of the first one is not forgotten yet"
    let_beat(EXPIRY, first, second)
    assert first.share() == second.share() == 0.5
    let_beat(EXPIRY + 2 * SECONDS_BETWEEN_BEATS, first)  # the second one is killed
    assert first.share() == 1
    assert len(folder.names(members.FOLDER)) == 1, "its file is removed"
    second.beat()  # it was only suspended
    assert second.share() == 0, "the first one does not know it any more"


def test_workers_of_a_job_share_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With real threads, files and requests."""
    for name, seconds in (("SECONDS_BETWEEN_BEATS", 0.2), ("LEASE", 2.0), ("EXPIRY", 4.0)):
        monkeypatch.setattr(members, name, seconds)
    endpoint = Endpoint(name=MODEL, requests_per_minute=1200)
    pictures = [np.frombuffer(b"fine %d" % number, np.uint8) for number in range(20)]
    with serving() as server:
        options = EndpointOptions((server.url,), endpoint, 1, str(tmp_path))
        with options.open("", 1) as one, options.open("", 1) as two:
            answers = [each.submit(picture, {}) for picture in pictures for each in (one, two)]
            assert all(answer.result().caption for answer in answers)
        assert not list((tmp_path / members.FOLDER).iterdir()), "who leaves takes its beat along"
        # 20 a second: 39 distances of at least 50 ms, and one more second was saved up at most.
        assert server.times[-1] - server.times[0] > 1.0
