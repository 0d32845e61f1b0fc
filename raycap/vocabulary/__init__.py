"""The vocabulary: cleaning of captions, the numbers of words, and GloVe vectors."""

from raycap.vocabulary.cleaning import Cleaning
from raycap.vocabulary.glove import GloveVectors, load_glove
from raycap.vocabulary.tokenisers import word_splitter
from raycap.vocabulary.words import (
    END,
    PAD,
    SPECIAL_TOKENS,
    START,
    UNK,
    Coverage,
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
    "Coverage",
    "GloveVectors",
    "Vocabulary",
    "VocabularyOptions",
    "load_glove",
    "word_splitter",
]
