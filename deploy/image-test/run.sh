#!/usr/bin/env bash
# Build the Dockerfile and test the image: `make image-test`, with a Docker engine, or without one as root on Debian.
#
# With an engine, engine.py does it all; BUILD_OPTIONS are further options of `docker build`. Without, the rest of this file
# needs buildah and debootstrap (apt), Python 3.11 with willbuy[train,embedded] in $PYTHON, and 15 GB below $TMPDIR.
# The base image is Debian's Python 3.11 under the name in the Dockerfile's FROM. This machine's pip, with its
# configuration, downloads the packages; the build gets them as a folder and needs no index.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
PYTHON=$(realpath --no-symlinks "$PYTHON")

if docker info > /dev/null 2>&1; then
    exec "$PYTHON" deploy/image-test/engine.py
fi

for tool in buildah debootstrap unshare; do
    command -v "$tool" > /dev/null || { echo "$tool is missing: apt-get install buildah debootstrap util-linux"; exit 1; }
done
[[ $(id --user) == 0 ]] || { echo "has to run as root: chroot isolation and debootstrap need it"; exit 1; }
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
    || { echo "$PYTHON is not Python 3.11, whose wheels the image needs"; exit 1; }

scratch=$(mktemp --directory --tmpdir willbuy-image-test.XXXXXX)
store=(buildah --root "$scratch/storage" --runroot "$scratch/run" --storage-driver vfs)
container=
cleanup() {
    [[ -z $container ]] || "${store[@]}" rm "$container" > /dev/null || true
    rm -rf --one-file-system "$scratch"
}
trap cleanup EXIT
say() { echo "== $*"; }

base=$(sed -n 's/^ARG PYTHON_IMAGE=//p' Dockerfile)
say "the base image, by debootstrap: $base"
debootstrap --variant=minbase --include=python3,python3-venv bookworm "$scratch/debian" > "$scratch/debootstrap.log" \
    || { tail -n 20 "$scratch/debootstrap.log"; exit 1; }
empty=$("${store[@]}" from scratch)
"${store[@]}" add --quiet "$empty" "$scratch/debian" / > /dev/null
"${store[@]}" commit --quiet --rm "$empty" "$base" > /dev/null
rm -rf --one-file-system "$scratch/debian"

say "the packages"
"$PYTHON" deploy/image/requirements.py pyproject.toml --extra kafka > "$scratch/serve.txt"
# redis-py requires async-timeout before Python 3.11.3, and Debian has 3.11.2.
"$PYTHON" -m pip download --quiet --dest "$scratch/wheels" --constraint constraints.txt \
    --requirement "$scratch/serve.txt" hatchling async-timeout
printf '[global]\nno-index = true\nfind-links = /wheels\n' > "$scratch/pip.conf"

say "the image, from the Dockerfile"
# In Docker's format, because OCI's has no health check.
"${store[@]}" bud --format docker --isolation chroot --pull-never --target serve --tag willbuy \
    --secret "id=pip_conf,src=$scratch/pip.conf" --volume "$scratch/wheels:/wheels:ro" . > "$scratch/build.log" 2>&1 \
    || { tail -n 40 "$scratch/build.log"; exit 1; }

say "a model of a synthetic shop"
"$PYTHON" -m training synthesize --out "$scratch/shop.parquet" --sessions 1500 > "$scratch/train.log"
mkdir "$scratch/artifacts"
"$PYTHON" -m training train "$scratch/shop.parquet" --out "$scratch/artifacts/model.pt" --epochs 1 --no-lightgbm \
    --set pretraining.epochs=0 --set fit.teacher_weight=0 >> "$scratch/train.log" 2>&1 \
    || { tail -n 20 "$scratch/train.log"; exit 1; }
chmod -R a+rX "$scratch/artifacts"

container=$("${store[@]}" from --pull-never willbuy)
# In a separate network namespace, so that the image's port is free and unreachable from outside.
unshare --net "$PYTHON" deploy/image-test/exercise.py --scratch "$scratch" --container "$container"
