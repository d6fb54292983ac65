#!/bin/sh
# Give the gateway what it needs before its first start: a certificate and one API key, named lab.
# The service `secrets` of compose.yaml runs this; what is there and still valid stays.
#
#   prepare.sh FOLDER
set -eu

folder=${1:?usage: prepare.sh FOLDER}
here=$(dirname "$0")
a_day=86400

if ! [ -e "$folder/server.pem" ] || ! openssl x509 -checkend "$a_day" -noout -in "$folder/server.pem"; then
    sh "$here/make_certificate.sh" "$folder" --force
fi
[ -e "$folder/keys.conf" ] || sh "$here/make_key.sh" "$folder" lab
echo "prepare.sh: certificate authority and keys are in docker/gateway/secrets"
