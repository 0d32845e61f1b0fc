"""Beam search for devices such as GPUs: tensors of fixed shapes, and no wait for the device.

    Beam(width=3).search(decoder, memory)     # where the memory is on CUDA

A step is the same function at every position: the position is a tensor too, and all tensors of a
batch are changed in place. So a CUDA graph can repeat it in one launch. Pictures that are done
stay in the batch: what is found of them no longer changes. Whether all are done is looked at every
few steps, without a wait.

It says the same captions as the search for processors (beam.py), which instead copies the pictures
that are not done to a smaller batch. `RAYCAP_SEARCH=device` or `processor` chooses one for
tests.
"""

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from raycap.decoders.decoder import Decoder, Tensors
from raycap.errors import UserError
from raycap.search import Beam
from raycap.search.beam import add_ended, are_done, highest, without_bonus
from raycap.search.captions import (
    SearchResult,
    add_attention,
    best_first,
    empty_captions,
    finished_result,
    select_captions,
)
from raycap.search.cuda import DoneFlags, HostCopy, LastUse, record_graph
from raycap.vocabulary import END, PAD, START, UNK

log = logging.getLogger(__name__)

LOOK_EVERY = 4  # steps
# Shapes of batches whose tensors and graphs are kept for a decoder: those used last.
SHAPES_KEPT = 4
# What captions hold before the first word.
EMPTY = {
    "words": PAD,
    "total": -torch.inf,
    "score": -torch.inf,
    "finished": False,
    "bonus": 0.0,
    "attention": 0.0,
}
_kept: "WeakKeyDictionary[Decoder, OrderedDict[object, DeviceBeam]]" = WeakKeyDictionary()
_keeping = threading.Lock()


def is_for_devices(decoder: Decoder, memory: Tensors) -> bool:
    """Whether `device_search` searches for captions with this memory."""
    asked = os.environ.get("RAYCAP_SEARCH", "")
    if asked not in ("", "device", "processor"):
        raise UserError(f"RAYCAP_SEARCH is {asked!r}: give device or processor, or leave it out")
    some = next(iter(memory.values()))
    # In a graph, dropout would repeat its random numbers, and autocast casts weights only once.
    if decoder.training or torch.is_autocast_enabled(some.device.type) or not len(some):
        return False
    return asked == "device" or (some.device.type == "cuda" and asked != "processor")


def device_search(
    options: Beam,
    decoder: Decoder,
    memory: Tensors,
    *,
    attention: bool,
    word_bonus: Tensor | None = None,
) -> SearchResult:
    """As `beam_search`."""
    # Tensors of inference mode could not be changed in place by a later call outside of it.
    with torch.inference_mode(False), torch.no_grad():
        beam = _beam_for(options, decoder, memory, attention, word_bonus)
        with beam.lock:
            return beam.search(decoder, memory, word_bonus)


def _beam_for(
    options: Beam,
    decoder: Decoder,
    memory: Tensors,
    attention: bool,
    word_bonus: Tensor | None,
) -> "DeviceBeam":
    """The one that is kept for batches of this shape, or a new one."""
    some = next(iter(memory.values()))
    shapes = tuple((name, part.shape, part.dtype) for name, part in memory.items())
    # A graph reads the weights where they are; if they have moved, it reads freed memory.
    weights = tuple(parameter.data_ptr() for parameter in decoder.parameters())
    key = (options, attention, word_bonus is not None, some.device, shapes, weights)
    with _keeping:
        kept = _kept.setdefault(decoder, OrderedDict())
        if key not in kept:
            kept[key] = DeviceBeam(options, decoder, memory, attention, word_bonus)
        kept.move_to_end(key)
        while len(kept) > SHAPES_KEPT:
            kept.popitem(last=False)
        return kept[key]


class DeviceBeam:
    """The tensors of a batch of one shape, and the step that changes them in place."""

    def __init__(
        self,
        options: Beam,
        decoder: Decoder,
        memory: Tensors,
        attention: bool,
        word_bonus: Tensor | None,
    ) -> None:
        some = next(iter(memory.values()))
        device, count, length = some.device, len(some), options.max_length
        self.options, self.device = options, device
        self.lock = threading.Lock()
        self.memory = _own(memory)
        self.word_bonus = None if word_bonus is None else word_bonus.clone()
        self.state = _own(decoder.fixed_state(memory, options.width, length))
        self.beams = empty_captions(count, options.width, length, device)
        self.ended = empty_captions(count, options.best, length, device)
        self.last_words = torch.full_like(self.beams["words"][..., 0], START)
        self.position = torch.zeros(1, dtype=torch.long, device=device)
        self.pictures = {
            "count": torch.zeros(count, dtype=torch.long, device=device),
            "done": torch.zeros(count, dtype=torch.bool, device=device),
        }
        self.all_done = torch.zeros(1, dtype=torch.bool, device=device)
        if word_bonus is not None:
            for captions in (self.beams, self.ended):
                captions["bonus"] = torch.zeros_like(captions["total"])
        if attention:  # only a step says how many places there are to look at
            step = decoder.step_at(self.position, self.last_words, self.state, self.memory)
            if step.attention is not None:
                add_attention(self.beams, step.attention)
                add_attention(self.ended, step.attention)
        # Constants.
        self.places = torch.arange(length, device=device)
        self.first_rows = torch.arange(count, device=device).unsqueeze(1)  # [B, 1]
        penalties = [(place + 1) ** options.length_penalty for place in range(length)]
        self.penalties = torch.tensor(penalties, device=device)
        forbidden = [PAD, START] if options.allow_unknown else [PAD, START, UNK]
        self.forbidden = torch.zeros(decoder.vocabulary_size, dtype=torch.bool, device=device)
        self.forbidden[torch.tensor(forbidden, device=device)] = True

        self.flags = DoneFlags(length, device)
        self.last_use = LastUse(device)
        self.searches = 0
        self.usual_steps = length  # that the batches before took
        self._replay: Callable[[], None] | None = None
        self._is_recordable = device.type == "cuda"

    def search(self, decoder: Decoder, memory: Tensors, word_bonus: Tensor | None) -> SearchResult:
        """The captions of a batch. The host waits at most once, for the flag after as many steps
        as the last batch took; who reads the result waits once more."""
        self.usual_steps = self.flags.first_done() or self.usual_steps
        self.last_use.wait()
        self.searches += 1
        # The second batch of a shape says that there may be many.
        if self._is_recordable and self._replay is None and self.searches > 1:
            self._record(decoder)
        for name, part in memory.items():
            self.memory[name].copy_(part)
        if self.word_bonus is not None and word_bonus is not None:
            self.word_bonus.copy_(word_bonus)
        self.restart(decoder)
        self.flags.clear()
        last = self.options.max_length
        for steps in range(1, last + 1):
            if self._replay is None:
                self.step(decoder)
            else:
                self._replay()
            if steps % LOOK_EVERY == 0 and steps < last:
                self.flags.send(self.all_done, steps)
                if steps == self.usual_steps:
                    self.flags.wait()
            if self.flags.first_done() is not None:
                break
        else:
            self.usual_steps = last
        result = self._result()
        self.last_use.mark()
        return result

    def _record(self, decoder: Decoder) -> None:
        try:
            self._replay = record_graph(
                lambda: self.step(decoder), lambda: self.restart(decoder), self.device
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._is_recordable = False
            log.warning(
                "the search runs without a CUDA graph, which is slower: %s",
                str(error).splitlines()[0],
            )

    def restart(self, decoder: Decoder) -> None:
        """Make the tensors those before the first word of the pictures in `self.memory`."""
        state = decoder.fixed_state(self.memory, self.options.width, self.options.max_length)
        for name, part in state.items():
            self.state[name].copy_(part)
        for captions in (self.beams, self.ended):
            for name, tensor in captions.items():
                tensor.fill_(EMPTY[name])
        # Only one of the beams may continue as long as all of them are the same.
        self.beams["total"][:, 0] = 0.0
        self.last_words.fill_(START)
        for tensor in (self.position, self.all_done, *self.pictures.values()):
            tensor.zero_()

    def step(self, decoder: Decoder) -> None:
        """Add one word to each beam, in place. It launches the same operators at every position
        and for every batch, and reads nothing on the host."""
        options, beams = self.options, self.beams
        read = decoder.step_at(self.position, self.last_words, self.state, self.memory)
        added = self._next_word_log_probabilities(read.logits)
        if self.word_bonus is not None:
            bonus = self.word_bonus.unsqueeze(1).expand_as(added)
            bonus = bonus.scatter(2, beams["words"], 0.0)
            added = added + bonus
        totals = beams["total"].unsqueeze(2) + added  # [B, K, V]
        total, index = highest(totals.flatten(1), 2 * options.width)
        parents, words = index // totals.shape[2], index % totals.shape[2]  # [B, 2K]

        candidates = select_captions(beams, parents)
        is_here = self.places == self.position  # [T]
        candidates["words"] = torch.where(is_here, words.unsqueeze(2), candidates["words"])
        candidates["total"] = total
        candidates["score"] = total / self.penalties.index_select(0, self.position)
        if self.word_bonus is not None:
            candidates["bonus"] += bonus.flatten(1).gather(1, index)
        if "attention" in candidates and read.attention is not None:
            weights = torch.take_along_dim(read.attention, parents.unsqueeze(2), 1)
            candidates["attention"] = torch.where(
                is_here.unsqueeze(1), weights.unsqueeze(2), candidates["attention"]
            )

        both, best = add_ended(options, self.ended, candidates, self.pictures)
        self._select_into(self.ended, both, best)
        # The first `width` candidates that have not ended become the beams.
        has_ended = (words == END).to(torch.uint8)
        going_on = torch.argsort(has_ended, dim=1, stable=True)[:, : options.width]
        self._select_into(beams, candidates, going_on)
        self._select_into(self.state, read.state, parents.gather(1, going_on))
        self.last_words.copy_(words.gather(1, going_on))
        done = self.pictures["done"] | are_done(options, beams, self.ended, self.pictures)
        self.pictures["done"].copy_(done)
        self.all_done.copy_(done.all().unsqueeze(0))
        self.position.add_(1)

    def _next_word_log_probabilities(self, logits: Tensor) -> Tensor:
        """As `captions.next_word_log_probabilities`, where the position is a tensor."""
        options, words = self.options, self.beams["words"]
        log_probabilities = torch.log_softmax(logits, -1, dtype=torch.float32)
        log_probabilities.masked_fill_(self.forbidden, -torch.inf)
        n = options.no_repeat_ngram
        if 0 < n <= options.max_length:
            ngrams = words.unfold(2, n, 1)  # [B, K, T - n + 1, n]
            before = (self.position - (n - 1) + self.places[: n - 1]).clamp(min=0)
            suffix = words.index_select(2, before).unsqueeze(2)  # [B, K, 1, n - 1]
            is_whole = self.places[: ngrams.shape[2]] + n <= self.position
            repeats = (ngrams[..., :-1] == suffix).all(-1) & is_whole
            penalty = torch.zeros_like(repeats, dtype=torch.float32)
            penalty = penalty.masked_fill(repeats, -torch.inf)
            log_probabilities.scatter_add_(2, ngrams[..., -1], penalty)
        if options.no_stutter:  # `<start>`, the last word before the first one, is forbidden
            log_probabilities.scatter_(2, self.last_words.unsqueeze(2), -torch.inf)
        if options.min_length:
            end = log_probabilities[..., END].clone()
            log_probabilities[..., END] = -torch.inf
            # If all words are forbidden, the caption ends, even if it is too short.
            stuck = log_probabilities.amax(-1) == -torch.inf
            may_end = stuck | (self.position >= options.min_length)
            log_probabilities[..., END] = end.masked_fill(~may_end, -torch.inf)
        return log_probabilities

    def _select_into(self, targets: Tensors, tensors: Tensors, captions: Tensor) -> None:
        """Of each picture the captions at the indices [B, M] of tensors [B, N, ...], into
        `targets` [B, M, ...]."""
        for name, target in targets.items():
            tensor = tensors[name]
            rows = (self.first_rows * tensor.shape[1] + captions).flatten()
            torch.index_select(tensor.flatten(0, 1), 0, rows, out=target.flatten(0, 1))

    def _result(self) -> SearchResult:
        # If too few captions have ended, unfinished ones follow them.
        both = {name: torch.cat([self.ended[name], self.beams[name]], 1) for name in self.ended}
        found = finished_result(without_bonus(self.options, best_first(both, self.options.best)))
        if self.device.type != "cuda":
            return found
        parts = [part for part in found[:5] if isinstance(part, Tensor)]
        return found._replace(on_host=HostCopy(parts))


def _own(tensors: Tensors) -> Tensors:
    """Copies with memory of their own, which a graph can read and write."""
    return {
        name: part.clone(memory_format=torch.contiguous_format) for name, part in tensors.items()
    }
