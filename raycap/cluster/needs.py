"""What a command needs of the cluster before it can start, and the wait for nodes that an autoscaler brings."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from raycap.cluster.autoscaler import autoscales, starting
from raycap.cluster.nodes import labelled, selector
from raycap.errors import UserError
from raycap.terminal import write_err

# Of what a long run could use: more is asked for later, by the work itself.
MOST_PIECES = 64
SECONDS_BETWEEN_LOOKS = 0.5
# When the least is there, the rest is waited for as long as nodes are being started, ...
SECONDS_TO_START_NODES = 300.0
# ... and otherwise until none has come for some seconds: an autoscaler adds nodes in steps.
SECONDS_TO_SETTLE = 15.0
# The first word after some seconds, the next ones after twice the time each.
SECONDS_TO_FIRST_WORD = 2.0
MOST_SECONDS_BETWEEN_WORDS = 600.0


@dataclass(frozen=True)
class Need:
    """Equal pieces of resources, each on one node."""

    purpose: str  # as in "waiting for ... to run the model"
    label: str
    resources: dict[str, float]
    pieces: int  # as many as could be used
    least: int = 1  # without so many the work cannot start

    def there(self) -> int:
        """How many pieces the cluster has, whether free or not."""
        return sum(
            int(
                min(
                    node["Resources"].get(name, 0) / amount
                    for name, amount in self.resources.items()
                )
            )
            for node in labelled(self.label)
        )

    def ask(self) -> list[PlacementGroup]:
        """Let the autoscaler know. Ray forgets a reservation when this process ends, however it ends."""
        nodes = selector(self.label)
        return [
            placement_group([self.resources], bundle_label_selector=[nodes] if nodes else None)
            for _ in range(min(self.pieces, MOST_PIECES))
        ]

    def __str__(self) -> str:
        amounts = " and ".join(f"{amount:g} {name}" for name, amount in self.resources.items())
        count = f"{self.least} times {amounts}" if self.least > 1 else f"a node with {amounts}"
        return f"{count}{f' and the label {self.label}' if self.label else ''}, {self.purpose}"


def provide(needs: Sequence[Need], wait: float) -> None:
    """Ask the cluster's autoscaler for what is needed and not there, and wait for it: at most `wait` seconds (0:
    for ever) for the least, then some time for more. A cluster without an autoscaler is left as it is."""
    short = [need for need in needs if need.there() < min(need.pieces, MOST_PIECES)]
    if not short or not autoscales():
        return
    asked = [group for need in short for group in need.ask()]
    try:
        _wait(short, wait)
    finally:
        for group in asked:
            remove_placement_group(group)


def _wait(needs: Sequence[Need], wait: float) -> None:
    begun = changed = time.monotonic()
    since = time.strftime("%H:%M:%S")
    next_word = SECONDS_TO_FIRST_WORD
    before: list[int] = []
    while True:
        there = [need.there() for need in needs]
        now = time.monotonic()
        if there != before:
            before, changed = there, now
        missing = [need for need, pieces in zip(needs, there, strict=True) if pieces < need.least]
        if not missing and _is_settled(needs, there, now - changed):
            return
        waited_for = "; and ".join(map(str, missing))
        if missing and wait and now - begun >= wait:
            raise UserError(
                f"no autoscaler brought {waited_for}, in {wait:,.0f} seconds (--cluster.wait; 0 waits for ever): "
                "`ray status` on the head says what it does; its nodes must have the label and the resources"
            )
        if missing and now - begun >= next_word:
            end = f"; --cluster.wait ends this after {wait:,.0f} seconds" if wait else ""
            write_err(f"raycap: waiting for {waited_for} (since {since}{end})\n")
            next_word += min(next_word, MOST_SECONDS_BETWEEN_WORDS)
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _is_settled(needs: Sequence[Need], there: Sequence[int], quiet: float) -> bool:
    """Whether it is no use to wait for more; nothing has come for `quiet` seconds."""
    if all(
        pieces >= min(need.pieces, MOST_PIECES) for need, pieces in zip(needs, there, strict=True)
    ):
        return True
    return quiet >= (SECONDS_TO_START_NODES if starting() else SECONDS_TO_SETTLE)
