"""Which model a server has: its list of models, asked before the run begins."""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raycap.captioners.endpoint.faults import Fault, Kind
from raycap.captioners.endpoint.key import ApiKey, find_key
from raycap.captioners.endpoint.options import Endpoint
from raycap.captioners.endpoint.transport import exchange, new_session
from raycap.errors import UserError
from raycap.options import nearest
from raycap.plainjson import loads

log = logging.getLogger(__name__)

# A server may be starting, in a container beside this one for example.
SECONDS_TO_START = 20.0
CHECK_SECONDS = 10.0
MOST_BYTES = 1 << 24
MOST_SHOWN = 20


def find_model_name(endpoint: Endpoint, urls: tuple[str, ...]) -> str:
    """The name that the servers have for their model. Raises UserError if they do not have the one
    that is asked for, or if it is not clear which one is meant."""
    key = find_key(endpoint.key_env, endpoint.key_file, urls)
    # In a thread of its own: the caller's thread may run an event loop (a notebook's does).
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(asyncio.run, _model_lists(urls, key, bool(endpoint.name))).result()
    lists = {url: models for url, models in found.items() if isinstance(models, list)}
    reached = {url: models for url, models in found.items() if not isinstance(models, Fault)}
    for url in urls:
        if isinstance(fault := found[url], Fault):
            if not reached:
                raise UserError(
                    f"{url}: {fault.reason}. Start the server there, or correct --model"
                )
            log.warning("%s: %s; the others are used", url, fault.reason)
    name = endpoint.name or _only_name(lists, urls[0])
    for url, models in lists.items():
        known = name in models or f"{name}:latest" in models
        if not known and endpoint.check_name and models:
            raise UserError(
                f"{url} has no model {name!r}{nearest(name, models[:MOST_SHOWN])}. Give "
                "--captioner.name, or --captioner.no-check-name if its list is not complete"
            )
    return name


def _only_name(lists: dict[str, list[str]], url: str) -> str:
    names = list(dict.fromkeys(name for models in lists.values() for name in models))
    if len(names) == 1:
        return names[0]
    if not names:
        raise UserError(
            f"{url}/models lists no models: give --captioner.name NAME. Is the URL right? It "
            "mostly ends in /v1"
        )
    shown = ", ".join(names[:MOST_SHOWN]) + (", ..." if len(names) > MOST_SHOWN else "")
    raise UserError(f"{url} has several models: choose with --captioner.name: {shown}")


async def _model_lists(
    urls: tuple[str, ...], key: ApiKey | None, name_is_known: bool
) -> dict[str, list[str] | Fault | None]:
    async with new_session(len(urls)) as session:
        lists = (_models(session, url, key, name_is_known) for url in urls)
        answers = await asyncio.gather(*lists)
    return dict(zip(urls, answers, strict=True))


async def _models(
    session: Any, url: str, key: ApiKey | None, name_is_known: bool
) -> list[str] | Fault | None:
    """The models of one server; None if it has no list, a Fault if it cannot be reached."""
    until, pause = time.monotonic() + SECONDS_TO_START, 0.5
    while True:
        try:
            content = await exchange(
                session, "GET", f"{url}/models", key, CHECK_SECONDS, MOST_BYTES
            )
            return _names(content)
        except Fault as fault:
            if fault.kind is Kind.NO_ACCESS or "redirects" in fault.reason:
                raise UserError(f"{url}/models: {fault.reason}") from None
            if fault.kind is Kind.REFUSED:
                return None
            # `transformers serve` fails to list its models when the hub's cache is empty.
            list_failed = fault.kind is Kind.BAD_ANSWER
            if list_failed and name_is_known:
                return None
            if time.monotonic() + pause > until:
                return None if list_failed else fault
            if pause == 0.5:
                log.warning("%s: %s; trying again for %g s", url, fault.reason, SECONDS_TO_START)
        await asyncio.sleep(pause)
        pause = min(2 * pause, 4.0)


def _names(content: bytes) -> list[str] | None:
    try:
        data = loads(content.decode("utf-8"))
    except ValueError:  # also UnicodeDecodeError
        return None
    models = data.get("data") if isinstance(data, dict) else None
    if not isinstance(models, list):
        return None
    names = [model.get("id") for model in models if isinstance(model, dict)]
    return [name for name in names if isinstance(name, str) and name]
