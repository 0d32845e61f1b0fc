"""Waits until the autoscaler has started the nodes that a command needs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from raycap.cluster.autoscaler import count_starting_nodes, has_autoscaler
from raycap.cluster.nodes import nodes_with_label, selector
from raycap.errors import UserError
from raycap.terminal import write_err

# The most pieces to ask for at the start. More nodes are used when they join.
MOST_PIECES = 64
SECONDS_BETWEEN_LOOKS = 0.5
# When the minimum is available, the run waits for the rest while nodes are being started, ...
SECONDS_TO_START_NODES = 300.0
# ... and otherwise until no node has joined for some seconds: an autoscaler adds nodes in steps.
SECONDS_TO_SETTLE = 15.0
# The first message comes after some seconds, and each next one after twice the time.
SECONDS_TO_FIRST_MESSAGE = 2.0
MOST_SECONDS_BETWEEN_MESSAGES = 600.0


@dataclass(frozen=True)
class Need:
    """A number of equal pieces of resources. Each piece is on one node: 4 times 1 GPU, for
    example."""

    purpose: str  # as in "waiting for ... to run the model"
    label: str
    resources: dict[str, float]
    pieces: int  # that the work could use
    least: int = 1  # pieces without which the work cannot start

    def available(self) -> int:
        """The number of pieces that the cluster has, free or in use."""
        pieces = 0
        for node in nodes_with_label(self.label):
            has = node["Resources"]
            pieces += int(min(has.get(name, 0) / each for name, each in self.resources.items()))
        return pieces

    def is_met_by(self, available: int) -> bool:
        """Whether this number of pieces is enough."""
        return available >= min(self.pieces, MOST_PIECES)

    def ask(self) -> list[PlacementGroup]:
        """Reserve the pieces with placement groups, so that the autoscaler starts nodes for them.
        Ray removes the groups when this process ends or dies."""
        nodes = selector(self.label)
        return [
            placement_group([self.resources], bundle_label_selector=[nodes] if nodes else None)
            for _ in range(min(self.pieces, MOST_PIECES))
        ]

    def __str__(self) -> str:
        amounts = " and ".join(f"{amount:g} {name}" for name, amount in self.resources.items())
        count = f"{self.least} times {amounts}" if self.least > 1 else f"a node with {amounts}"
        return f"{count}{f' and the label {self.label}' if self.label else ''}, {self.purpose}"


def wait_for_nodes(needs: Sequence[Need], wait: float) -> None:
    """Ask the autoscaler for missing resources, and wait for them: at most `wait` seconds (0: no
    limit) for the minimum of each need, then for some time for the rest. Without an autoscaler,
    this does nothing."""
    short = [need for need in needs if not need.is_met_by(need.available())]
    if not short or not has_autoscaler():
        return
    groups = [group for need in short for group in need.ask()]
    try:
        _wait(short, wait)
    finally:
        for group in groups:
            remove_placement_group(group)


def _wait(needs: Sequence[Need], wait: float) -> None:
    started = changed = time.monotonic()
    since = time.strftime("%H:%M:%S")
    next_message = SECONDS_TO_FIRST_MESSAGE
    before: list[int] = []
    while True:
        available = [need.available() for need in needs]
        now = time.monotonic()
        if available != before:
            before, changed = available, now
        missing = [
            need for need, pieces in zip(needs, available, strict=True) if pieces < need.least
        ]
        if not missing:
            if all(need.is_met_by(pieces) for need, pieces in zip(needs, available, strict=True)):
                return
            if now - changed >= (
                SECONDS_TO_START_NODES if count_starting_nodes() else SECONDS_TO_SETTLE
            ):
                return
        else:
            names = "; and ".join(map(str, missing))
            if wait and now - started >= wait:
                raise UserError(
                    f"no autoscaler brought {names}, in {wait:,.0f} seconds (--cluster.wait; 0 "
                    "waits for ever): `ray status` on the head says what it does; its nodes must "
                    "have the label and the resources"
                )
            if now - started >= next_message:
                limit = f"; --cluster.wait ends this after {wait:,.0f} seconds" if wait else ""
                write_err(f"raycap: waiting for {names} (since {since}{limit})\n")
                next_message += min(next_message, MOST_SECONDS_BETWEEN_MESSAGES)
        time.sleep(SECONDS_BETWEEN_LOOKS)
