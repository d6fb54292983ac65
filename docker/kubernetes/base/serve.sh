#!/bin/sh
# Start Triton on the models that have a file to serve (run by compose.yaml, inside the container).
#
# A model folder without a version is not an error here: TensorRT's is empty where no GPU built it,
# and a fresh checkout has none before notebook 05. Triton itself would refuse to become ready.
set -eu

repository=${REPOSITORY:-/model_repository} # mounted read-only
models=${MODELS:-/models}                   # what Triton sees: links to the complete models

has_version() {
    for version in "$1"/[1-9]*/; do
        if [ -d "$version" ] && [ -n "$(find -L "$version" -type f | head -n 1)" ]; then
            return 0
        fi
    done
    return 1
}

served=0
for folder in "$repository"/*/; do
    [ -d "$folder" ] || continue
    folder=${folder%/}
    if has_version "$folder"; then
        ln -sfn "$folder" "$models/${folder##*/}"
        served=$((served + 1))
    else
        echo "left out, no model file yet: ${folder##*/}" >&2
    fi
done
if [ "$served" -eq 0 ]; then
    echo "nothing to serve: run notebooks 01 to 05, or set MODEL_REPOSITORY in docker/.env" >&2
    exit 1
fi

# What changes or watches the server itself asks for a password, which is made anew at each start and
# told to nobody: these calls answer 403 (gRPC: UNAVAILABLE). Statistics stay open, the lab reads them.
closed=model-repository,shared-memory,trace,logging
password=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')

# exec: Triton gets the container's stop signal itself and ends its models in order.
exec tritonserver \
    --model-repository="$models" \
    --model-control-mode=none \
    --exit-timeout-secs="${EXIT_TIMEOUT_S:-20}" \
    --http-restricted-api="$closed:lab-operator=$password" \
    --grpc-restricted-protocol="$closed:lab-operator=$password" \
    "$@"
