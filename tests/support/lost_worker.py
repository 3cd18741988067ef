"""A program for torchrun: two processes add numbers; the second fails at the third number."""

import sys

from training.runtime.distributed import WorkerError, join

with join("cpu") as workers:
    for number in range(1000):
        if number == 2 and not workers.first:
            print("error: the second process fails", file=sys.stderr)
            raise ValueError("planted")
        try:
            workers.total(float(number))
        except WorkerError as exc:
            print(f"error: {exc}", file=sys.stderr)
            raise
