"""The first program inside the sandbox: gives up what is left of its rights, then becomes another.

Run by path, with nothing but the standard library: `python -I confined.py '{JSON}' command …`. The
JSON says as whom to go on and which limits the kernel is to enforce on top of the grader's watch.
"""

import ctypes
import json
import os
import resource
import struct
import sys
from pathlib import Path

NICENESS = 10  # so that the grader's watch gets its turn beside hundreds of busy processes


# Of the kernel, on x86-64: linux/seccomp.h, linux/filter.h, asm/unistd_64.h, linux/sched.h.
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, FILTER = 38, 22, 2
LOAD, EQUAL, ABOVE, ANY_OF, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
X86_64, NUMBER_AT, ARCH_AT, FIRST_ARGUMENT_AT = 0xC000003E, 0, 4, 16
ALLOW, PRETEND, EPERM, ENOSYS = 0x7FFF0000, 0x00050000, 0x00050001, 0x00050026
CLONE, UNSHARE, SETNS, CLONE3, X32 = 56, 272, 308, 435, 0x40000000
SHMGET, MEMFD_CREATE, MEMFD_SECRET, SCHED_SETAFFINITY = 29, 319, 447, 203
IO_URING_SETUP, IO_URING_ENTER, IO_URING_REGISTER, CLOSE_RANGE = 425, 426, 427, 436
NEW_USER, THREAD, FILES = 0x10000000, 0x10000, 0x400
OPEN_FILES = 4_096  # fewer than the grader's watch looks at
REFUSED = {
    SETNS: EPERM,
    CLONE3: ENOSYS,  # its flags cannot be looked at; libraries go on with clone
    # Memory that no process is seen to hold; /dev/shm remains, and is counted.
    SHMGET: ENOSYS,
    MEMFD_CREATE: ENOSYS,
    MEMFD_SECRET: ENOSYS,
    # Files that no process is seen to have open; libraries go on without.
    IO_URING_SETUP: ENOSYS,
    IO_URING_ENTER: ENOSYS,
    IO_URING_REGISTER: ENOSYS,
    CLOSE_RANGE: ENOSYS,
    # The cores of another submission; libraries that pin their threads go on without.
    SCHED_SETAFFINITY: PRETEND,
}


def refuse_calls() -> None:
    """Refuse new user namespaces, in which a program could gain rights again, and `REFUSED`.

    So it does threads with open files of their own, which the grader's watch would not see.
    bubblewrap's own option for namespaces needs a user namespace, and has none where root starts.
    """
    if os.uname().machine != "x86_64":
        return
    program = [
        (LOAD, 0, 0, ARCH_AT), (EQUAL, 1, 0, X86_64), (RETURN, 0, 0, EPERM),
        (LOAD, 0, 0, NUMBER_AT), (ABOVE, 0, 1, X32), (RETURN, 0, 0, EPERM),
    ]  # fmt: skip
    for number, answer in REFUSED.items():
        program += [(EQUAL, 0, 1, number), (RETURN, 0, 0, answer)]
    program += [
        (EQUAL, 6, 0, CLONE), (EQUAL, 1, 0, UNSHARE), (RETURN, 0, 0, ALLOW),
        (LOAD, 0, 0, FIRST_ARGUMENT_AT), (ANY_OF, 0, 1, NEW_USER | FILES), (RETURN, 0, 0, EPERM),
        (RETURN, 0, 0, ALLOW),
        (LOAD, 0, 0, FIRST_ARGUMENT_AT), (ANY_OF, 0, 1, NEW_USER), (RETURN, 0, 0, EPERM),
        (ANY_OF, 0, 1, THREAD), (ANY_OF, 0, 1, FILES), (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, EPERM),
    ]  # fmt: skip
    code = b"".join(struct.pack("<HBBI", *step) for step in program)
    text = ctypes.create_string_buffer(code, len(code))
    rules = struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(PR_SET_SECCOMP, FILTER, ctypes.create_string_buffer(rules, len(rules)), 0, 0):
        sys.exit(f"seccomp: {os.strerror(ctypes.get_errno())}")


def main() -> None:
    """Set the limits, change the user, become the command."""
    settings = json.loads(sys.argv[1])
    # Chosen first where the kernel itself runs out of memory: this, and not the grader.
    Path("/proc/self/oom_score_adj").write_text("1000")
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = min(OPEN_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
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
    refuse_calls()
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
