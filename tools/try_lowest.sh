#!/bin/sh
# Try the lab outside its own environment: in the oldest packages that pyproject.toml allows, or in somebody else's environment.
#   tools/try_lowest.sh lowest|hosted [--at FOLDER] [--python PYTHON]
# lowest: an environment of the lowest version of each direct dependency, found by uv.
# hosted: an environment with an older PyTorch, the newest numpy and JupyterLab, as a hosted notebook has them, and one over it
# (its packages are seen, not owned) in which `pip install CHECKOUT` adds what is missing and may replace nothing.
# In both: `pip check`, `labkit doctor` and the smoke chain from a clone of the last commit. Takes about 8 GB and 15 minutes; run by hand.
set -eu

say() { printf '%s\n' "$*"; }
stop() { printf 'try_lowest: %s\n' "$*" >&2; exit 2; }

usage="usage: tools/try_lowest.sh lowest|hosted [--at FOLDER] [--python PYTHON]"
what="${1:-}"
case "$what" in lowest | hosted) shift ;; *) stop "got '$what', expected lowest or hosted. $usage" ;; esac
at="/var/tmp/labkit-$what"
python=python3
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || stop "got $1 without a value. $usage"
    case "$1" in
        --at) at="$2" ;;
        --python) python="$2" ;;
        *) stop "got $1. $usage" ;;
    esac
    shift 2
done
project=$(git rev-parse --show-toplevel 2>/dev/null) || stop "a git checkout is needed: a clone of its last commit is tried"
[ ! -e "$at" ] || stop "$at is there already: remove it, or name another folder with --at"
mkdir -p "$at"
at=$(cd "$at" && pwd -P)
clone="$at/lab"
git clone --quiet --no-hardlinks "$project" "$clone"

"$python" -m venv "$at/env"
pip() { "$at/env/bin/python" -m pip --disable-pip-version-check "$@"; }
if [ "$what" = lowest ]; then
    "$python" -m venv "$at/uv"
    "$at/uv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$project/constraints.txt" uv
    "$at/uv/bin/uv" pip compile --quiet --python "$at/env/bin/python" --resolution lowest-direct \
        --extra grading "$clone/pyproject.toml" -o "$at/lowest.txt" || stop "the lowest versions do not fit together; uv's message is above"
    pip install --quiet -r "$at/lowest.txt"
    pip install --quiet --no-deps "$clone"
else
    "$python" -m venv "$at/host"
    "$at/host/bin/python" -m pip install --quiet --disable-pip-version-check "torch==2.6.*" "torchvision==0.21.*" "numpy>=2" jupyterlab ipykernel matplotlib
    # `--system-site-packages` sees the packages of a system's Python; this line lets it see those of an environment, as if it were one.
    "$at/host/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
        "$("$at/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/host.pth"
    "$at/host/bin/python" -m pip list --format=freeze --disable-pip-version-check | sort > "$at/before.txt"
    pip install --quiet "$clone"
    # What the environment has of its own although the host had it was replaced.
    "$at/env/bin/python" -m pip list --path "$("$at/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
        --format=freeze --disable-pip-version-check | sort > "$at/added.txt"
    replaced=$(cut -d= -f1 "$at/before.txt" | grep -vx -e pip -e setuptools | while read -r name; do grep "^$name==" "$at/added.txt" || :; done)
    say "replaced although it was there: ${replaced:-nothing}"
fi
pip check || say "pip check: see above"
cd "$clone"
"$at/env/bin/labkit" doctor || say "labkit doctor: exit status $?"
"$at/env/bin/labkit" triton build --if-possible
"$at/env/bin/labkit" triton fetch
"$at/env/bin/labkit" run --profile smoke
"$at/env/bin/python" -c 'from importlib.metadata import version as v
print("passed with", ", ".join(f"{n} {v(n)}" for n in ("torch", "torchvision", "numpy", "onnx", "onnxruntime", "openvino", "nncf", "tritonclient", "jupyterlab")))'
