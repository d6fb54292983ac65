"""A stranger's text, short and safe to print anywhere."""

MAX_NAME = 100  # characters of a file's name
MAX_MESSAGE, MAX_CLASS = 300, 60  # characters of what an error says, and of its class


def short_name(name: str) -> str:
    """Return a stranger's file name, shortened and safe to print."""
    start = name[:MAX_NAME]
    text = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in start)
    return text + ("…" if len(name) > MAX_NAME else "")


def short_line(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return the start of a stranger's text as one line that can be printed anywhere."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * limit]).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
