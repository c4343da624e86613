"""The one error type that the command line turns into a one-line message."""


class UserError(Exception):
    """Something the user can mend: the message names the file or option and says what to do.

    The command line prints it as one line and exits with status 2; a library caller sees an exception.
    """
