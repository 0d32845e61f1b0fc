"""How a family of models is asked.

chat      [user: <picture> "Describe this picture."]  ->  the answer         Qwen-VL, SmolVLM, ...
prefix    <picture> "a photo of"  ->  the rest of the caption                BLIP, GIT, ...
task      <picture> "<CAPTION>"  ->  what this task gives                    Florence-2, ...
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from raycap.captioners.generation import DEFAULT_PROMPT
from raycap.captioners.presets import Dialect
from raycap.errors import UserError

# `model_type` of the families that are not asked in a chat, and what they are asked by default.
PREFIX = ("blip", "blip-2", "git", "vision-encoder-decoder")
TASK = {
    "florence2": "<DETAILED_CAPTION>",
    "kosmos-2": "An image of",
    "paligemma": "caption en",
}
# Families whose answers in a batch of several shapes are, token for token, those of each picture
# alone; tests/test_huggingface.py compares them. Others are batched by shape.
RAGGED = ("qwen2_vl", "qwen2_5_vl", "idefics3", "smolvlm")
# Texts that are kept as the chat template makes them.
_MOST_TEXTS = 1000


def dialect_of(family: str, processor: Any) -> Dialect | None:
    """The dialect of a family; None if nothing says it."""
    if family in PREFIX:
        return "prefix"
    if family in TASK:
        return "task"
    return "chat" if getattr(processor, "chat_template", None) else None


def default_prompt(family: str, dialect: Dialect) -> str:
    if dialect == "chat":
        return DEFAULT_PROMPT
    return TASK.get(family, "") if dialect == "task" else ""


class Inputs:
    """Makes of pictures and prompts what `generate` takes."""

    def __init__(
        self, processor: Any, family: str, dialect: Dialect, system: str, resized: bool
    ) -> None:
        self.processor, self.family, self.dialect = processor, family, dialect
        self.system = system
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.images = processor.image_processor
        self.pixels = {"return_tensors": "pt", "input_data_format": "channels_last"}
        if resized:
            for switch in ("do_resize", "do_center_crop"):
                if getattr(self.images, switch, None):
                    self.pixels[switch] = False  # type: ignore[assignment]
        self._texts: dict[tuple[str, str], str] = {}

    def __call__(
        self,
        pictures: Sequence[np.ndarray],
        prompts: Sequence[str],
        system: str | None = None,
        start: str = "",
    ) -> dict[str, Any]:
        """`system` is another system message than the usual one, `start` begins the answers."""
        if self.dialect == "chat":
            return self._chat(pictures, [self.text(each, system) + start for each in prompts])
        if self.dialect == "task":
            return self._task(pictures, prompts)
        return self._prefix(pictures, prompts)

    def text(self, prompt: str, system: str | None = None) -> str:
        """What a prompt becomes in the chat template, up to where the answer begins."""
        system = self.system if system is None else system
        if (prompt, system) not in self._texts:
            if len(self._texts) >= _MOST_TEXTS:  # prompts with values of rows
                self._texts.clear()
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
            if system:
                said = [{"type": "text", "text": system}]
                messages.insert(0, {"role": "system", "content": said})
            self._texts[prompt, system] = self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False
            )
        return self._texts[prompt, system]

    def text_around(self, answer: str) -> tuple[str, str]:
        """What the chat template puts before an answer, behind the text that asks for it, and what
        it puts behind the answer. Both are empty if the template does not say."""
        asked = [{"type": "image"}, {"type": "text", "text": "ASKED"}]
        answered = [{"type": "text", "text": answer}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": asked}]
        begun = self.processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        messages.append({"role": "assistant", "content": answered})
        whole = self.processor.apply_chat_template(messages, tokenize=False)
        if not whole.startswith(begun) or answer not in whole[len(begun) :]:
            return "", ""
        before, _, after = whole[len(begun) :].partition(answer)
        return (before if before.isspace() else ""), after

    def _chat(self, pictures: Sequence[np.ndarray], texts: Sequence[str]) -> dict[str, Any]:
        first = self.tokenizer.bos_token
        begun = bool(first) and texts[0].startswith(first)  # the tokenizer would add it again
        return dict(
            self.processor(
                text=list(texts),
                images=[[picture] for picture in pictures],
                padding=True,
                **({"add_special_tokens": False} if begun else {}),
                **self.pixels,
            )
        )

    def _task(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> dict[str, Any]:
        mark = "<image>" if self.family == "paligemma" else ""
        texts = [mark + prompt for prompt in prompts]
        return dict(self.processor(text=texts, images=list(pictures), padding=True, **self.pixels))

    def _prefix(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> dict[str, Any]:
        if not any(prompts):
            return {"pixel_values": self.images(list(pictures), **self.pixels)["pixel_values"]}
        if self.family in ("blip", "blip-2"):
            return dict(
                self.processor(
                    text=list(prompts), images=list(pictures), padding=True, **self.pixels
                )
            )
        import torch

        # Without the token that ends a text. Prompts of a batch have the same length.
        begin = self.tokenizer.cls_token_id if self.family == "git" else None
        rows = [
            ([] if begin is None else [begin])
            + self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
            for prompt in prompts
        ]
        pixels = self.images(list(pictures), **self.pixels)["pixel_values"]
        if self.family == "vision-encoder-decoder":
            return {"pixel_values": pixels, "decoder_input_ids": torch.tensor(rows)}
        return {"pixel_values": pixels, "input_ids": torch.tensor(rows)}


def picture_mark(processor: Any) -> str:
    """The text that stands for a picture; "" if there is none."""
    mark = getattr(processor, "image_token", None)
    mark = getattr(mark, "content", mark)
    return mark if isinstance(mark, str) else ""


def check_prompt(prompt: str, processor: Any) -> None:
    """Raises UserError if a prompt holds the mark of a picture: there is just one, and the dialect
    puts it where it belongs."""
    mark = picture_mark(processor)
    if mark and mark in prompt:
        raise UserError(
            f"--captioner.prompt holds {mark!r}, the model's mark for a picture: leave it out, it "
            "is put where it belongs"
        )
