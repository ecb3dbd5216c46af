"""The one exception a user is meant to read."""


class UserError(Exception):
    """Bad input. The message is one sentence: where, what was found, what was expected.

    The command line prints it alone, without a traceback, and exits with code 2.
    """
