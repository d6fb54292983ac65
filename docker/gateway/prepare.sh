#!/bin/sh
# Give the gateway what it needs before its first start: a certificate and one API key, named lab.
# The service `secrets` of compose.yaml runs this; what is there and still valid stays.
#
#   prepare.sh FOLDER
set -eu

folder=${1:-}
if [ -z "$folder" ]; then
    echo "usage: prepare.sh FOLDER" >&2
    exit 2
fi
here=$(dirname "$0")
a_week=604800 # seconds

still_valid() { openssl x509 -checkend "$a_week" -noout -in "$1" >/dev/null; }

if ! [ -e "$folder/server.pem" ] || ! still_valid "$folder/server.pem"; then
    sh "$here/make_certificate.sh" "$folder" --force
fi
[ -e "$folder/keys.conf" ] || sh "$here/make_key.sh" "$folder" lab
echo "prepare.sh: certificate authority and keys are in docker/gateway/secrets"
