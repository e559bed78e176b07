"""The one kind of error that is the user's to mend."""


class UserError(Exception):
    """Something the user gave cannot be used.

    The message is one line: it names the field or file, the value found and what is allowed. The command line
    prints it on stderr and exits with status 2; as a library it is an ordinary exception.
    """


class NonFiniteLossError(Exception):
    """The loss of a step, or what the step made of the parameters, is NaN or infinite. Exit status 3."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"step {step}: {what}")
        self.step = step
        self.what = what
