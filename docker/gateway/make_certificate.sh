#!/bin/sh
# Make a test certificate for the gateway: a certificate authority of your own, and a certificate
# for localhost that it has signed. For tests and courses; nobody else trusts it, as they should.
#
#   make_certificate.sh FOLDER [--force]
#
# FOLDER gets ca.pem (give it to clients), server.pem and server.key (private: mode 600). The key of
# the authority is thrown away: whoever trusts ca.pem trusts this one certificate and no other.
set -eu

folder=${1:-}
force=${2:-}
days=365
files="server.key ca.pem server.pem" # in this order: the last one says that all are there
names="DNS:localhost,DNS:gateway,IP:127.0.0.1"

if [ -z "$folder" ] || [ $# -gt 2 ] || { [ -n "$force" ] && [ "$force" != --force ]; }; then
    echo "usage: make_certificate.sh FOLDER [--force]" >&2
    exit 2
fi
command -v openssl >/dev/null || { echo "make_certificate.sh: openssl is not here: install it" >&2; exit 1; }

mkdir -p "$folder"
if [ "$force" != --force ]; then
    for name in $files; do
        if [ -e "$folder/$name" ]; then
            echo "make_certificate.sh: $folder/$name is there already; --force replaces it" >&2
            exit 1
        fi
    done
fi

umask 077
work=$(mktemp -d "$folder/.making.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# Elliptic curves: made in milliseconds, and as good as RSA with 3072 bits.
new_key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1" 2>/dev/null; }

new_key "$work/ca.key"
openssl req -x509 -new -key "$work/ca.key" -sha256 -days "$days" -out "$work/ca.pem" \
    -subj "/CN=CIFAR-10 Triton lab: test authority" \
    -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign"

new_key "$work/server.key"
openssl req -new -key "$work/server.key" -subj "/CN=localhost" -out "$work/server.csr"
printf '%s\n' "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature" \
    "extendedKeyUsage=serverAuth" "subjectAltName=$names" >"$work/server.ext"
openssl x509 -req -in "$work/server.csr" -CA "$work/ca.pem" -CAkey "$work/ca.key" \
    -CAserial "$work/ca.srl" -CAcreateserial -sha256 -days "$days" \
    -extfile "$work/server.ext" -out "$work/server.pem" 2>/dev/null

chmod 644 "$work/ca.pem" "$work/server.pem"
for name in $files; do
    mv -f "$work/$name" "$folder/$name"
done
echo "make_certificate.sh: $folder/ca.pem and server.pem, valid for $days days"
