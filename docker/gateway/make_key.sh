#!/bin/sh
# Make an API key: 32 random bytes, in hexadecimal.
#
#   make_key.sh FOLDER NAME
#
# FOLDER/NAME.key gets the key itself (give it to the client), FOLDER/keys.conf a line that makes the
# gateway know it as NAME. Both are private: mode 600. A name that has a key already is refused:
# delete its line and its file to withdraw the key, then restart or reload the gateway.
set -eu

folder=${1:-}
name=${2:-}
if [ -z "$folder" ] || [ $# -ne 2 ]; then
    echo "usage: make_key.sh FOLDER NAME" >&2
    exit 2
fi
case $name in
    '' | *[!A-Za-z0-9_-]*)
        echo "make_key.sh: got the name '$name', expected letters, digits, - and _ only" >&2
        exit 2
        ;;
esac
mkdir -p "$folder"
if [ -e "$folder/$name.key" ]; then
    echo "make_key.sh: $folder/$name.key is there already" >&2
    exit 1
fi

umask 077
key=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
printf '"%s" %s;\n' "$key" "$name" >>"$folder/keys.conf"
printf '%s\n' "$key" >"$folder/$name.key"
echo "make_key.sh: $folder/$name.key"
