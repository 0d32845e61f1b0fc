"""What may be wrong with a caption, judged from its text by fixed rules.

    flags_of(JudgedAnswer("I'm sorry, I can't help with that.", finish_reason="stop"), Flags())
        ->  ["refusal"]

The words are in `raycap.schema.FLAGS`; `docs/flags.md` says how well they are found.
"""

from raycap.flags.judge import JudgedAnswer, flags_in_words, flags_of
from raycap.flags.options import Flags

__all__ = ["Flags", "JudgedAnswer", "flags_in_words", "flags_of"]
