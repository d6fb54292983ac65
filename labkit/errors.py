"""The root of every error that labkit raises on purpose."""


class LabError(Exception):
    """Something a person can act on: the message says what was got, expected, and what to do."""
