"""Words and numbers: cleaning captions, the vocabulary, and GloVe vectors for it."""

from raycap.vocabulary.cleaning import Cleaning
from raycap.vocabulary.glove import GloveVectors, load_glove
from raycap.vocabulary.words import (
    END,
    PAD,
    SPECIAL_TOKENS,
    START,
    UNK,
    Vocabulary,
    VocabularyOptions,
)

__all__ = [
    "END",
    "PAD",
    "SPECIAL_TOKENS",
    "START",
    "UNK",
    "Cleaning",
    "GloveVectors",
    "Vocabulary",
    "VocabularyOptions",
    "load_glove",
]
