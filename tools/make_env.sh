#!/bin/sh
# Build the environment in .venv from pyproject.toml and constraints.txt; run again, it does only what is missing.
#   tools/make_env.sh [python] [torch-index]     (called by `make env`; run from the project's root)
# torch-index: an index's address or a folder of wheels to take torch and torchvision from, as for PyTorch's CPU build.
set -eu

say() { printf '%s\n' "$*"; }
stop() { printf 'make env: %s\n' "$*" >&2; exit 1; }

# A Python that starts (a version manager's stand-in may exist and not start), is 3.11 to 3.13 and can make environments.
usable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
        >/dev/null 2>&1
}

# A newer one: Triton's wheel has no stub for it, and only a compiler can make one.
newer() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

describe() {
    "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || say "does not start"
}

find_python() {
    if [ -n "${1:-}" ]; then
        if newer "$1"; then
            command -v "${CXX:-g++}" >/dev/null 2>&1 ||
                stop "PYTHON=$1 ($(describe "$1")) is newer than the Python stubs in Triton's wheel (3.11 to 3.13): take one of those, or install g++, with which \`labkit triton build\` makes a stub for it."
        else
            usable "$1" || stop "PYTHON=$1 ($(describe "$1")) cannot be used: Python 3.11, 3.12 or 3.13 with its venv module is needed."
        fi
        say "$1"
        return
    fi
    seen=""
    for candidate in python3.12 python3.13 python3.11 python3 python; do
        if usable "$candidate"; then
            say "$candidate"
            return
        fi
        if command -v "$candidate" >/dev/null 2>&1; then
            seen="$seen $candidate ($(describe "$candidate"))"
        fi
    done
    stop "Python 3.11, 3.12 or 3.13 with its venv module is needed; found:${seen:- no Python at all}." \
        "Install one (on Debian and Ubuntu: apt install python3 python3-venv) or name it: make env PYTHON=/path/to/python3.12"
}

# Triton's binary is built for glibc 2.35; without it nothing that follows would help.
check_c_library() {
    glibc=$("$1" -c 'import platform; print(platform.libc_ver()[1])')
    case "$glibc" in
        2.*) [ "${glibc#2.}" -ge 35 ] || stop "this system has glibc $glibc; Triton needs 2.35 or newer (Debian 12, Ubuntu 22.04, Fedora 36)." ;;
        *) stop "this system has no glibc (musl, as on Alpine?); Triton needs glibc 2.35 or newer." ;;
    esac
}

# PyTorch first, from where the user says, at the pinned versions: 2.14.1+cpu is a 2.14.1, so pip keeps it afterwards.
install_torch() {
    if [ -d "$1" ]; then
        set -- --no-index -f "$1"
    else
        set -- -i "$1"
    fi
    .venv/bin/python -m pip install --disable-pip-version-check --no-deps -c constraints.txt "$@" torch torchvision
}

started=$(date +%s)
torch_index="${2:-}"
needed_gb=10
why=" (PyTorch's Linux wheels bring CUDA along; TORCH_INDEX names another build)"
case "$torch_index" in
    "" | *://*) download="about 3.4 GB to download, 6.8 GB on disk" ;;
    *) [ -d "$torch_index" ] || stop "TORCH_INDEX=$torch_index is neither a folder of wheels nor an index's address (of the form scheme://host/path): PyTorch's installation page names the address for each build." ;;
esac
if [ -n "$torch_index" ]; then
    download="PyTorch comes from $torch_index"
    needed_gb=5 # an environment without CUDA's libraries has 2.8 GB, and the wheels are kept beside it
    why=""
fi

# An environment knows the folder it was made in: one that was moved, copied or lost its Python is made anew.
if [ -d .venv ]; then
    if ! .venv/bin/python -c 'import pip' >/dev/null 2>&1; then
        say "environment: the one in .venv does not start; making it anew"
        rm -rf .venv
    elif [ "$(cat .venv/made-in 2>/dev/null)" != "$(pwd -P)" ]; then
        say "environment: the one in .venv was not made in this folder; making it anew"
        rm -rf .venv
    fi
fi

if [ ! -d .venv ]; then
    python=$(find_python "${1:-}")
    if [ "$(uname -s)" = Linux ]; then
        free_gb=$(df -Pk . | awk 'NR == 2 { print int($4 * 1.024e-6) }')
        [ "$free_gb" -ge "$needed_gb" ] || stop "$needed_gb GB of free disk are needed while installing$why; there are $free_gb GB."
        if [ "$(uname -m)" = x86_64 ]; then check_c_library "$python"; fi
    fi
    say "environment: .venv with $python ($(describe "$python")); $download"
    "$python" -m venv .venv
    pwd -P > .venv/made-in
fi

[ -z "$torch_index" ] || install_torch "$torch_index" ||
    stop "pip could not install the pinned torch and torchvision from TORCH_INDEX=$torch_index; its own message is above. Another address or folder, or none, installs the default build."
.venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]' ||
    stop "pip could not install the packages; its own message is above. What was downloaded is kept: run it again."
.venv/bin/python -m pip check --disable-pip-version-check || stop "the packages do not fit together; see above."

packages=$(.venv/bin/python -m pip list --disable-pip-version-check --format=freeze | wc -l)
size=$(du -sh .venv | cut -f1)
say "environment: ready in .venv, Python $(describe .venv/bin/python), $((packages)) packages, $size, $(($(date +%s) - started)) s"
