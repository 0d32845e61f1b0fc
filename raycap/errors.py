"""The one error that is the user's to mend: it names the thing and the remedy, and ends a command with code 2."""


class UserError(ValueError):
    """A wrong flag, file, source or environment, said in words that a stranger can act on."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message  # Ray Data appends advice about retries to `args`

    def __str__(self) -> str:
        return self.message
