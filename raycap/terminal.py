"""Text from outside on its way to a person's terminal."""


def printable(text: str) -> str:
    """A name or reason, safe to print: no line breaks, no terminal escapes."""
    return "".join(character if character.isprintable() else "�" for character in text)
