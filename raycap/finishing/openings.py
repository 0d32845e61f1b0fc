"""Leaves out openings: "The image shows a dog." becomes "A dog."."""

import re
from collections.abc import Sequence

_PICTURE = (
    r"(?:image|picture|photo|photograph|pic|scene|illustration|drawing|painting|artwork|shot|"
    r"screenshot|snapshot|frame|visual|rendering)"
)
# Words that say nothing about the picture. Others, such as "black and white", stay.
_PRAISE = (
    r"(?:(?:very |really )?(?:detailed|clear|nice|beautiful|vivid|stunning|captivating|striking|"
    r"lovely|high[- ]quality|high[- ]resolution|provided|given|attached|above) )?"
)
_SHOWS = (
    r"(?:shows|showcases|depicts|displays|features|captures|contains|presents|portrays|"
    r"illustrates|represents|includes|is of|is showing|is depicting|consists of|"
    r"(?:appears|seems) to (?:show|depict|feature|be of|portray|capture|display)|"
    r"(?:shows|depicts) us)"
)
_OF = (
    r"(?:of|showing|depicting|featuring|that shows|that depicts|which shows|portraying|capturing)"
)
_USUAL = (
    r"(?:sure|certainly|of course|okay|ok|absolutely|great)(?: thing)?[!,.:]+\s+",
    r"here(?:'s|’s| is) (?:a|an|the|your|one|my)\b[^:.\n]{0,80}:\s*",
    r"(?:the )?(?:image |picture |photo )?(?:caption|description|alt[- ]text|answer|output|title)"
    r"\s*:\s*",
    rf"in (?:this|the) {_PRAISE}{_PICTURE},? (?:we can see|we see|you can see|you see|i can see|"
    rf"i see|one can see|there is|there are|there's)\s+",
    rf"in (?:this|the) {_PRAISE}{_PICTURE},\s+",
    rf"(?:this|the|that) {_PRAISE}{_PICTURE} {_SHOWS}\s+",
    rf"(?:this|it|that|here) is (?:a|an|the) {_PRAISE}{_PICTURE} {_OF}\s+",
    rf"(?:a|an|the) {_PRAISE}{_PICTURE} {_OF}\s+",
    r"(?:i|we|you) (?:can )?see\s+",
    # German, French, Spanish, Italian
    r"(?:das|dieses) (?:bild|foto) (?:zeigt|stellt)\s+",
    r"(?:dies|das|hier) ist ein (?:bild|foto) (?:von|mit)\s+",
    r"(?:ein|eine) (?:bild|foto|aufnahme) (?:von|mit)\s+",
    r"(?:l['’]image|cette image|cette photo|la photo) (?:montre|représente)\s+",
    r"(?:c['’]est|voici) une (?:image|photo) (?:de|d['’])\s*",
    r"(?:la|esta) (?:imagen|foto|fotografía) (?:muestra|presenta|representa)\s+",
    r"(?:esta )?es una (?:imagen|foto) de\s+",
    r"(?:l['’]immagine|questa immagine|la foto|questa foto) (?:mostra|raffigura|rappresenta)\s+",
)
USUAL_OPENINGS = re.compile("|".join(f"(?:{opening})" for opening in _USUAL), re.I)


def without_openings(text: str, usual: bool, others: Sequence[str]) -> str:
    """The text without openings, with a capital letter where it had one. A text that is nothing
    but an opening stays."""
    while True:
        length = _length_of_opening(text, usual, others)
        rest = text[length:].lstrip()
        if not length or not rest:
            return text
        text = rest[0].upper() + rest[1:] if text[0].isupper() else rest


def _length_of_opening(text: str, usual: bool, others: Sequence[str]) -> int:
    found = USUAL_OPENINGS.match(text) if usual else None
    lengths = [found.end() if found else 0]
    for opening in others:
        length = len(opening)
        is_there = text[:length].lower() == opening.lower()
        # "In this" does not open "In thistles".
        ends_in_word = opening[-1].isalnum() and text[length : length + 1].isalnum()
        lengths.append(length if is_there and not ends_in_word else 0)
    return max(lengths)
