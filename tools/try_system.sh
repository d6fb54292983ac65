#!/bin/sh
# Try this checkout's last commit on a bare Debian in a folder, as a new user would: README's two commands.
#   tools/try_system.sh bookworm|trixie [--with PACKAGE]... [--steps "ruff unit"] [--at FOLDER] [--again]
# --with adds a package of the system (g++ for the native backends), --steps takes some steps of `make test`
# ("none" for the first command only), --at says where the system goes (on a disk with 20 GB; /var/tmp),
# --again takes the home as the last try left it, with the commit of now.
# Needs root, mmdebstrap and bubblewrap; run by hand (`make try-system SYSTEM=trixie`), not by CI.
set -eu

say() { printf '%s\n' "$*"; }
stop() { printf 'try_system: %s\n' "$*" >&2; exit 2; }

usage="usage: tools/try_system.sh bookworm|trixie [--with PACKAGE]... [--steps STEPS] [--at FOLDER] [--again]"
system="${1:-}"
case "$system" in
    bookworm | trixie) shift ;;
    *) stop "got '$system', expected bookworm (Debian 12) or trixie (Debian 13). $usage" ;;
esac
packages="make,python3,python3-venv,ca-certificates" # README's first line, and what pip's TLS needs
steps=""
at=/var/tmp/labkit-systems
again=""
while [ $# -gt 0 ]; do
    if [ "$1" = --again ]; then
        again=yes
        shift
        continue
    fi
    [ $# -ge 2 ] || stop "got $1 without a value. $usage"
    case "$1" in
        --with) packages="$packages,$2" ;;
        --steps) steps="$2" ;;
        --at) at="$2" ;;
        *) stop "got $1. $usage" ;;
    esac
    shift 2
done

missing=""
for tool in mmdebstrap bwrap setpriv git python3; do
    command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
done
[ -z "$missing" ] || stop "missing here:$missing; on Debian and Ubuntu: apt-get install mmdebstrap bubblewrap util-linux git python3 debian-archive-keyring"
[ "$(id -u)" -eq 0 ] || stop "root is needed to build a system in a folder (what is tried in it runs without root): sudo make try-system SYSTEM=$system"
project=$(git rev-parse --show-toplevel 2>/dev/null) || stop "a git checkout is needed: the system gets a clone of its last commit"

mkdir -p "$at"
root="$at/$system-$(printf %s "$packages" | cksum | cut -d ' ' -f 1)"
if [ ! -e "$root/built" ]; then
    say "$system: building the bare system with $packages"
    rm -rf "$root"
    mmdebstrap --quiet --mode=root --variant=minbase --include="$packages" "$system" "$root" ||
        stop "mmdebstrap could not build $system; its own message is above. Look at the network and at apt's keys (debian-archive-keyring)."
    touch "$root/built"
fi

# The network of the host: names, certificates, apt's proxy and pip's configuration in one file.
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
printf '127.0.0.1 localhost\n::1 localhost\n' > "$root/etc/hosts" # an installed Debian has it
apt-config dump 2>/dev/null | grep -E '^Acquire::((https?)?::Proxy|Check-|Retries)' > "$root/etc/apt/apt.conf.d/90host" || :
settings=$(cd / && python3 -m pip config list 2>/dev/null | sed -n "s/^global\.\([a-z-]*\)='\(.*\)'\$/\1 = \2/p" | sed 's/\\n/ /g') || settings=""
{ say "[global]"; say "$settings"; } > "$root/etc/pip.conf"

# A home with nothing in it but the clone, owned by a user of the system's own.
user=1000
grep -q "^student:" "$root/etc/passwd" || {
    say "student:x:$user:$user::/home/student:/bin/sh" >> "$root/etc/passwd"
    say "student:x:$user:" >> "$root/etc/group"
}
clone="$root/home/student/lab"
if [ -n "$again" ] && [ -d "$clone" ]; then
    chown 0:0 "$clone" # git refuses to work in another user's
    chown -R 0:0 "$clone/.git"
    git -C "$clone" fetch --quiet "$project" HEAD
    git -C "$clone" reset --quiet --hard FETCH_HEAD
else
    rm -rf "$root/home/student"
    mkdir -p "$root/home/student"
    git clone --quiet --no-hardlinks "$project" "$clone"
fi
commit=$(git -C "$project" log -1 --format='%h %s')
chown -R "$user:$user" "$root/home/student"

# bwrap and not chroot: inside a chroot the kernel forbids the user namespaces of the grader's sandbox.
set -- --bind "$root" / --proc /proc --dev /dev --tmpfs /dev/shm --tmpfs /run --ro-bind-try /sys /sys \
    --unshare-user --uid "$user" --gid "$user" --unshare-pid --unshare-ipc --die-with-parent --new-session \
    --clearenv --setenv HOME /home/student --setenv USER student --setenv LANG C.UTF-8 \
    --setenv PATH /usr/local/bin:/usr/bin:/bin --chdir /home/student/lab

# give PATH: the same path inside, read-only. Only root can make the place for it.
give() {
    if [ -d "$1" ]; then
        mkdir -p "$root$1"
    else
        mkdir -p "$root$(dirname "$1")"
        [ -e "$root$1" ] || : > "$root$1"
    fi
}
for name in $(env | sed -n 's/^\(PIP_[A-Z_]*\|[A-Za-z]*_proxy\|[A-Z]*_PROXY\|SSL_CERT_FILE\|REQUESTS_CA_BUNDLE\|NODE_EXTRA_CA_CERTS\|LABKIT_NATIVE_SOURCES\|TORCH_INDEX\)=.*/\1/p'); do
    value=$(printenv "$name")
    set -- "$@" --setenv "$name" "$value"
    settings="$settings $value"
done
for word in $settings; do
    case "$word" in
        file:///*) path=$(dirname "${word#file://}") ;; # an index's pages link to files beside them
        /*) path="$word" ;;
        *) continue ;;
    esac
    [ -e "$path" ] || continue
    give "$path"
    set -- "$@" --ro-bind "$path" "$path"
done

inside() { setpriv --reuid "$user" --regid "$user" --clear-groups -- bwrap "$@"; }

# try TITLE COMMAND…: run it inside, keep its output, say how it ended
status=0
try() {
    title="$1"
    log="$at/$system-$2.log"
    shift 2
    say "$system: $title (output: $log)"
    began=$(date +%s)
    ended=0
    inside "$@" > "$log" 2>&1 || ended=$?
    [ "$ended" -eq 0 ] || status=1
    summary="$summary
== $system: $title: exit status $ended after $(($(date +%s) - began)) s
$(tail -n 15 "$log")"
}

summary="== $system: $(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' "$root/etc/os-release"), $(inside "$@" python3 --version), packages $packages; commit $commit"
say "$summary"
try "make lab PROFILE=smoke" lab "$@" make lab PROFILE=smoke
if [ "$steps" != none ]; then
    try "make test STEPS=\"$steps\"" test "$@" make test STEPS="$steps"
fi
say "$summary"
say "$system: left in $root; remove it with: rm -rf $root"
exit "$status"
