"""`python -m training prepare | train | synthesize | replay | demo`: the same commands as `willbuy`."""

from training.cli import cli

if __name__ == "__main__":
    cli()
