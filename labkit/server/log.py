"""Read Triton's log: which model failed to load, and in which words."""

import re
from pathlib import Path

# A record starts like `E1123 01:15:32.376892 8042 model_lifecycle.cc:642] "message`.
_RECORD = re.compile(r"^[IWEFV]\d{4} \d\d:\d\d:\d\d\.\d+ \d+ \S+:\d+\] ?")
_FAILED = (
    re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<why>.*)", re.DOTALL),
    re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<why>.*)", re.DOTALL),
    re.compile(
        r"(?P<why>ensemble '?(?P<model>[^' ]+)'? contains models that are not .*)", re.DOTALL
    ),
    re.compile(r"failed to load model '(?P<model>[^']+)': (?P<why>.*)", re.DOTALL),
)
_REFUSED = re.compile(r"^(?P<model>[^:\s]+): request failed: (?P<why>.*)$", re.MULTILINE)
_BIND = re.compile(r"already in use|failed to start (HTTP|GRPC|metrics)|Address in use", re.I)
# A stand-in's error has Triton's word for its kind, and before it that of the Python backend.
_KIND = re.compile(r"^Internal: (?=(Invalid argument|Internal|Unavailable|Unsupported): )")
MAX_LINES = 40
TAIL_LINES = 15


def records(text: str) -> list[str]:
    """Split a log into its records; lines without a header belong to the record before."""
    found: list[str] = []
    for line in text.splitlines():
        if _RECORD.match(line) or not found:
            found.append(line)
        else:
            found[-1] += "\n" + line
    return found


def failed_models(text: str) -> dict[str, str]:
    """Return model name → what the server says about its failed load, in the order met."""
    failures: dict[str, str] = {}
    for record in records(text):
        message = _RECORD.sub("", record, count=1).strip().strip('"')
        for pattern in _FAILED:
            match = pattern.search(message)
            if match:
                failures.setdefault(match["model"], _readable(match["why"]))
                break
    # Nobody but a warm-up asks before the server is ready. This release of Triton may crash when
    # one fails, before it says which model it was: then these lines are all there is.
    for match in _REFUSED.finditer(text):
        failures.setdefault(match["model"], f"its warm-up failed: {match['why']}")
    return failures


def lost_a_port(text: str) -> bool:
    """Say whether the server ended because an address was taken."""
    return _BIND.search(text) is not None


def tail(path: Path) -> str:
    """Return the last lines of a log, without the ASCII tables and the list of all options."""
    text = read(path).split("Usage: tritonserver")[0]
    kept = [line for line in text.splitlines() if line and line[0] not in "+|"]
    return "\n".join(kept[-TAIL_LINES:])


def read(path: Path) -> str:
    """Return the text of a log; empty when there is none yet."""
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _readable(message: str) -> str:
    """Undo the log's escapes; leave one word for the kind of error."""
    message = message.strip().strip('"').replace("\\n", "\n").replace("\\t", "\t").strip()
    message = _KIND.sub("", message)
    lines = message.splitlines()
    return "\n".join(lines[:MAX_LINES] + ["…"] * (len(lines) > MAX_LINES))
