"""UserError, for what the user can fix: its message names the thing and the remedy."""


class UserError(ValueError):
    """A wrong option, file, source or environment. It ends a command with exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message  # Ray Data appends advice about retries to `args`

    def __str__(self) -> str:
        return self.message
