#!/bin/sh
# Train a model of a synthetic shop into the folder $1, unless the folder has a model.
set -eu
out=$1/model.pt
if [ -e "$out" ]; then
    echo "$out exists; nothing to train"
    exit 0
fi
shop=$(mktemp -d)
trap 'rm -rf "$shop"' EXIT
willbuy synthesize --out "$shop/shop.parquet" --sessions "${DEMO_SESSIONS:-15000}" --seed 1
# The quick recipe and a small network are enough for a demonstration: half a minute of one core.
willbuy train "$shop/shop.parquet" --out "$out" --posterior "$shop/shop.posterior.parquet" --scratch "$shop" \
    --quick --hidden-size 32 --head-size 32 --epochs "${DEMO_EPOCHS:-6}"
