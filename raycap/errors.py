"""The one error that the user can fix. It names the thing and the remedy, and ends a command with exit code 2."""


class UserError(ValueError):
    """A wrong flag, file, source or environment, in words that the user can act on."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message  # Ray Data appends advice about retries to `args`

    def __str__(self) -> str:
        return self.message
