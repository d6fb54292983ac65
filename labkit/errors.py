"""The root of every error that labkit raises on purpose."""


class LabError(Exception):
    """Something a person can act on: the message says what was got, expected, and what to do."""


class UsageError(LabError):
    """A command was given a name that does not exist; the command line exits with 2."""
