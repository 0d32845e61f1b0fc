"""Cuts reasoning out of an answer: what models that think write between tags.

without_reasoning("<think>A dog. Or a wolf?</think>A dog.")  ->  ("A dog.", True)
"""

import re

_NAMES = (
    r"(?:seed:)?(?:think|thinking|thought|thoughts|reason|reasoning|reflection|reflect|scratchpad|"
    r"analysis|cot|inner_monologue|rationale|chain_of_thought|cot_budget_reflect)"
)
_OPEN = re.compile(rf"<\|?{_NAMES}\|?>|\[{_NAMES}\]|◁{_NAMES}▷|<\|begin_of_{_NAMES}\|>", re.I)
_CLOSE = re.compile(rf"<\|?/{_NAMES}\|?>|\[/{_NAMES}\]|◁/{_NAMES}▷|<\|end_of_{_NAMES}\|>", re.I)
# Tags around the answer, which stand behind reasoning.
_ANSWER = re.compile(
    r"</?answer>|<\|(?:begin|end)_of_(?:solution|answer|box)\|>|</?final_answer>|"
    r"</?response>|</?output>|\[/?answer\]",
    re.I,
)
# <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>A dog.
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>", re.I)
_CONTROL = re.compile(r"<\|(?:start|end|return|call|message|channel)\|>(?:assistant)?", re.I)


def without_reasoning(text: str) -> tuple[str, bool]:
    """The text without reasoning, and whether there was any. A text without it stays as it is."""
    text, had_channels = _final_channel(text)
    had_tags = False
    while (found := _first_tag(text)) is not None:
        had_tags = True
        start, end, is_open = found
        if not is_open:  # the opening tag belonged to the prompt: all before is reasoning
            text = text[end:]
            continue
        closing = _CLOSE.search(text, end)
        text = text[:start] + (text[closing.end() :] if closing else "")
    if not (had_tags or had_channels):
        return text, False
    return _ANSWER.sub("", text).strip(), True


def _first_tag(text: str) -> tuple[int, int, bool] | None:
    opening, closing = _OPEN.search(text), _CLOSE.search(text)
    if opening and (closing is None or opening.start() < closing.start()):
        return opening.start(), opening.end(), True
    return (closing.start(), closing.end(), False) if closing else None


def _final_channel(text: str) -> tuple[str, bool]:
    channels = list(_CHANNEL.finditer(text))
    if not channels:
        return text, False
    last = channels[-1]
    is_final = last[1].lower() in ("final", "response", "answer")
    return (_CONTROL.sub("", text[last.end() :]).strip() if is_final else ""), True
