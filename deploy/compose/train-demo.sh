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
# A small network and a few epochs are enough for a demonstration.
willbuy train "$shop/shop.parquet" --out "$out" --posterior "$shop/shop.posterior.parquet" --scratch "$shop" \
    --hidden-size 32 --head-size 32 --batch-sessions 128 --learning-rate 3e-3 --epochs "${DEMO_EPOCHS:-8}" --patience 3
