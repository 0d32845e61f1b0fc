"""Captions per second of a training step of the LSTM with attention, against the way of the
tutorials.

    python benchmarks/step.py [--pictures 32] [--projection 0] [--rounds 7] [--threads 2]

The tutorials' way: a row for each caption, so that a grid comes five times; captions sorted by
length, each word's step on the rows that still have one; the grid projected again for each word,
and the words scored step by step. The same weights, captions and loss on both sides, which must
agree on loss and gradients. Made-up captions as long as Flickr8k's, 8,000 words, hidden 512, grids
49 x 2048. Forward and backward; all sides take turns in one run; figures are medians. At least 3
times is wanted.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from json_figures import add_json, write_figures
from torch import Tensor
from torch.nn import functional

from raycap.decoders import Recurrent
from raycap.decoders.layers import AdditiveAttention
from raycap.decoders.recurrent import AttentiveRecurrent
from raycap.vocabulary import END, PAD, START

VOCABULARY, POSITIONS, WIDTH, REFERENCES = 8_000, 49, 2_048, 5
Loss = Callable[[], Tensor]


def batch(pictures: int) -> tuple[Tensor, Tensor, Tensor]:
    """Grids [B, P, D], the words [B, R, T] from `<start>`, and those that follow each."""
    source = torch.Generator().manual_seed(0)
    grid = torch.rand(pictures, POSITIONS, WIDTH, generator=source)
    lengths = (
        (torch.randn(pictures, REFERENCES, generator=source) * 3.9 + 10.8)
        .round()
        .clamp(3, 30)
        .long()
    )
    longest = int(lengths.max()) + 1
    words = torch.randint(4, VOCABULARY, (pictures, REFERENCES, longest), generator=source)
    place, last = torch.arange(longest), lengths.unsqueeze(2)
    following = torch.where(place < last, words, PAD).masked_fill(place == last, END)
    before = torch.cat([torch.full_like(words[..., :1], START), following[..., :-1]], 2)
    return grid, before.masked_fill(following == PAD, PAD), following


def ours(decoder: AttentiveRecurrent, grid: Tensor, words: Tensor, following: Tensor) -> Tensor:
    outputs, _ = decoder.unroll(decoder.prepare(grid, grid.mean(1)), words)
    true = following != PAD
    return functional.cross_entropy(decoder.logits(outputs[true]), following[true])


def tutorials(
    decoder: AttentiveRecurrent, grid: Tensor, words: Tensor, following: Tensor
) -> Tensor:
    attention = decoder.attention
    assert isinstance(attention, AdditiveAttention)
    words, following = words.flatten(0, 1), following.flatten(0, 1)  # [N, T]
    grid = grid.repeat_interleave(REFERENCES, 0)  # [N, P, D]
    lengths, order = (following != PAD).sum(1).sort(descending=True)
    words, following, grid = words[order], following[order], grid[order]
    state = decoder.entrance.prepare(grid.mean(1))
    hidden, cell = state["hidden"][:, 0], state["cell"][:, 0]  # [N, H]
    scores, true = [], []
    for place in range(int(lengths[0])):
        rows = int((lengths > place).sum())
        hidden, cell = hidden[:rows], cell[:rows]
        local = decoder.projection(grid[:rows])
        keys = attention.key(local)  # [n, P, A]
        compared = torch.tanh(keys + attention.query(hidden).unsqueeze(1))
        weights = torch.softmax(attention.weigh(compared).squeeze(2), 1)
        context = (weights.unsqueeze(2) * local).sum(1)  # [n, D]
        entering = decoder.word_input(
            decoder.embedding(words[:rows, place])
        ) + decoder.context_input(context)
        hidden, cell = decoder.cells[0](entering, hidden, cell)
        scores.append(decoder.logits(hidden))
        true.append(following[:rows, place])
    return functional.cross_entropy(torch.cat(scores), torch.cat(true))


def gradients(decoder: AttentiveRecurrent, loss: Loss) -> Tensor:
    decoder.zero_grad()
    loss().backward()  # type: ignore[no-untyped-call]
    return torch.cat(
        [part.grad.flatten() for part in decoder.parameters() if part.grad is not None]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = {"pictures": 32, "projection": 0, "rounds": 7, "threads": torch.get_num_threads()}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    add_json(parser)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    options = Recurrent(output_dropout=0.0, projection_width=given.projection)
    decoder = AttentiveRecurrent(options, VOCABULARY, WIDTH, None)
    data = batch(given.pictures)
    sides: dict[str, Loss] = {
        "tutorials": lambda: tutorials(decoder, *data),
        "raycap": lambda: ours(decoder, *data),
    }

    theirs, mine = (gradients(decoder, side) for side in sides.values())
    print(
        f"{given.pictures} pictures x {REFERENCES} captions, {given.threads} threads, projection "
        f"{given.projection}"
    )
    print(
        f"gradients differ by {float((theirs - mine).norm() / theirs.norm()):.1e} of their length"
    )
    seconds: dict[str, list[float]] = {}
    for _ in range(given.rounds):
        for precision in ("float32", "bfloat16"):
            for name, side in sides.items():
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
                    loss = side()
                loss.backward()  # type: ignore[no-untyped-call]
                decoder.zero_grad()
                seconds.setdefault(f"{precision} {name}", []).append(time.perf_counter() - start)

    captions = given.pictures * REFERENCES
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        ratio = medians[f"{name.split()[0]} tutorials"] / median
        print(f"{name:20} {captions / median:8.1f} captions/s   {ratio:5.2f} x the tutorials' way")
    figures = {
        f"{short}_ratio": medians[f"{name} tutorials"] / medians[f"{name} raycap"]
        for short, name in (("fp32", "float32"), ("bf16", "bfloat16"))
    }
    write_figures(given, figures)


if __name__ == "__main__":
    main()
