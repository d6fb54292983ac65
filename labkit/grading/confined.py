"""The first program inside the sandbox: gives up what is left of its rights, then becomes another.

Run by path, with nothing but the standard library: `python -I confined.py '{JSON}' command …`. The
JSON says as whom to go on and which limits the kernel is to enforce on top of the grader's watch.
"""

import json
import os
import resource
import sys
from pathlib import Path

NICENESS = 10  # so that the grader's watch gets its turn beside hundreds of busy processes


def main() -> None:
    """Set the limits, change the user, become the command."""
    settings = json.loads(sys.argv[1])
    # Chosen first where the kernel itself runs out of memory: this, and not the grader.
    Path("/proc/self/oom_score_adj").write_text("1000")
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    file_bytes = settings["file_bytes"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    if settings["uid"] is not None:  # started by root: go on as a user that owns nothing else
        os.setgroups([])
        os.setresgid(*3 * [settings["uid"]])
        os.setresuid(*3 * [settings["uid"]])
    # Counted per user: after the change of user, and only where the sandbox has a user of its own.
    if settings["tasks"] is not None:
        resource.setrlimit(resource.RLIMIT_NPROC, (settings["tasks"], settings["tasks"]))
    os.umask(0o022)
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
