"""From what a sample took one worker to what all rows of a job will take.

Each quantity is a mean over the sample with its 95% interval. How many workers there will be, and
that they do not slow each other down, is assumed.
"""

from dataclasses import dataclass

import pyarrow as pa

from raycap.bulk.intervals import Interval, mean_interval, wilson_interval
from raycap.bulk.measuring import Deployment, Measured
from raycap.bulk.options import CaptionOptions
from raycap.schema import SUCCESS


@dataclass(frozen=True)
class Estimate:
    """What is expected of all rows of a job."""

    rows: int
    hours: Interval
    tokens_in: Interval | None
    tokens_out: Interval | None
    failed: Interval  # a share
    money: Interval | None


def extrapolate(
    measured: Measured,
    deployment: Deployment,
    rows: int,
    prices: CaptionOptions,
    limits: tuple[float, float] = (0, 0),
) -> Estimate:
    """What `rows` rows will take. `limits` are the most requests and the most tokens in a minute,
    of all workers; 0 for none."""
    tokens_in, tokens_out = tokens_per_row(measured.made)
    model = mean_interval(measured.model_seconds).times(1 / deployment.workers)
    load = mean_interval(measured.load_seconds or [0.0]).times(1 / deployment.processors)
    if deployment.gpus or waits_for_server(measured.made):
        seconds = Interval(*map(max, model, load))  # at the same time, on other hardware
    else:
        seconds = Interval(*(sum(pair) for pair in zip(model, load, strict=True)))
    requests_per_minute, tokens_per_minute = limits
    if requests_per_minute:
        seconds = Interval(*(max(value, 60 / requests_per_minute) for value in seconds))
    if tokens_per_minute and tokens_in and tokens_out:
        tokens = [sum(pair) for pair in zip(tokens_in, tokens_out, strict=True)]
        least = [60 * count / tokens_per_minute for count in tokens]
        seconds = Interval(*map(max, seconds, least))
    hours = seconds.times(rows / 3600)
    failed = sum(status != SUCCESS for status in measured.made["status"].to_pylist())
    all_in, all_out = times_rows(tokens_in, rows), times_rows(tokens_out, rows)
    paid = deployment.workers * deployment.gpus or deployment.machines  # GPUs, else machines
    return Estimate(
        rows,
        hours,
        all_in,
        all_out,
        wilson_interval(failed, len(measured.made)),
        money_of(hours.times(paid), all_in, all_out, prices),
    )


def waits_for_server(made: pa.Table) -> bool:
    """Whether the captions come from a server: the worker itself needs no processor."""
    return "seconds" in made.column_names


def tokens_per_row(made: pa.Table) -> tuple[Interval | None, Interval | None]:
    """The tokens in and out of a row; None if the captioner does not count them. A row about which
    nothing was asked has 0."""

    def mean(name: str) -> Interval | None:
        if name not in made.column_names or made[name].null_count == len(made):
            return None
        return mean_interval([float(count or 0) for count in made[name].to_pylist()])

    return mean("tokens_in"), mean("tokens_out")


def times_rows(tokens: Interval | None, rows: int) -> Interval | None:
    return None if tokens is None else tokens.times(rows)


def money_of(
    hours: Interval,
    tokens_in: Interval | None,
    tokens_out: Interval | None,
    prices: CaptionOptions,
) -> Interval | None:
    """What this costs; None without prices, or if tokens have a price and are not counted."""
    parts: list[Interval] = []
    for tokens, price in ((tokens_in, prices.price_in), (tokens_out, prices.price_out)):
        if price is not None:
            if tokens is None:
                return None
            parts.append(tokens.times(price / 1e6))
    if prices.price_hour is not None:
        parts.append(hours.times(prices.price_hour))
    return Interval(*map(sum, zip(*parts, strict=True))) if parts else None
