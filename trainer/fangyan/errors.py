"""The error that is shown to users."""


class UserError(Exception):
    """Report bad input in one sentence: where, what was found, what was expected.

    The command line prints the message alone, without a traceback, and exits with code 2.

    Args:
        message: the sentence.
        on_every_rank: whether all ranks of a run meet the same mistake, so that one need say it.
    """

    def __init__(self, message: str, on_every_rank: bool = True):
        super().__init__(message)
        self.on_every_rank = on_every_rank
