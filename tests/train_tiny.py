"""Trains the tiny Qwen2-VL in tests/data, which describes the pictures of the `shapes` source.

    python tests/train_tiny.py                    # some minutes; prints how many are right
    python tests/train_tiny.py 1000 --continue    # goes on with the one that is there

It has learned pictures on canvases of several proportions, so that captions of a ragged batch show
if pictures, crops or rows are mixed up.
"""

import sys
import time

import numpy as np
import pyarrow as pa
import torch
from tiny_models import TRAINED, qwen2_vl

from raycap.images import Reading, read_whole
from raycap.sources import Shapes

PROMPT = "Describe this picture in one sentence."
MARGINS = (0, 32, 64)  # pixels


def pictures(count: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Pictures [N, 96, 96, 3] and their captions."""
    source = Shapes(count=count, seed=seed)
    table = pa.concat_tables(source.tables())
    files = source.embedded_pictures(table)
    shown = [read_whole(data, Reading()).pixels for data in files if data]
    return np.stack(shown), [texts[0] for texts in table["references"].to_pylist()]


def on_canvas(
    batch: np.ndarray, chance: np.random.Generator, extra: tuple[int, int]
) -> np.ndarray:
    """The same pictures with more background beside, above and below them."""
    high, wide = extra
    top, left = chance.integers(high + 1), chance.integers(wide + 1)
    edges = ((0, 0), (top, high - top), (left, wide - left), (0, 0))
    return np.pad(batch, edges, mode="edge")


def main(steps: int, goes_on: bool) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more of them wait for each other: the tensors are small
    rate = 1e-3 if goes_on else 2e-3
    chance = np.random.default_rng(steps if goes_on else 0)
    model, processor = qwen2_vl(64, spread=0.02)
    if goes_on:
        model = type(model).from_pretrained(TRAINED)
    tokenizer = processor.tokenizer
    shown, captions = pictures(8_000, 1)
    content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
    messages = [{"role": "user", "content": content}]
    asked = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    answers = tokenizer([text + "<|im_end|>" for text in captions], return_tensors="pt")[
        "input_ids"
    ]
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    began, size = time.time(), 32
    for step in range(steps):
        chosen = chance.integers(len(shown), size=size)
        extra = (0, 0) if step % 3 else tuple(chance.choice(MARGINS, 2))
        batch = list(on_canvas(shown[chosen], chance, extra))
        asks = processor(text=[asked], images=[[batch[0]]], return_tensors="pt", do_resize=False)
        patches = processor.image_processor(batch, return_tensors="pt", do_resize=False)
        prompt = asks["input_ids"].expand(size, -1)
        ids = torch.cat([prompt, answers[chosen]], 1)
        labels = ids.masked_fill(torch.arange(ids.shape[1]) < prompt.shape[1], -100)
        loss = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            labels=labels,
            **patches,
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(
                f"step {step + 1}: loss {loss.item():.4f}, {time.time() - began:.0f} s", flush=True
            )
    model.eval().save_pretrained(TRAINED)
    processor.save_pretrained(TRAINED)
    shown, captions = pictures(400, 0)
    for extra in ((0, 0), (64, 0), (0, 64), (32, 64)):
        right = 0
        for start in range(0, 400, 50):
            batch = list(on_canvas(shown[start : start + 50], chance, extra))
            inputs = processor(
                text=[asked] * 50, images=[[each] for each in batch], return_tensors="pt"
            )
            made = model.generate(**inputs, max_new_tokens=12, do_sample=False)
            texts = processor.batch_decode(
                made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
            )
            right += sum(a == b for a, b in zip(texts, captions[start : start + 50], strict=True))
        print(f"with margins of {extra}: {right} of 400 right", flush=True)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdigit()]
    main(*(numbers or [3000]), goes_on="--continue" in sys.argv)
