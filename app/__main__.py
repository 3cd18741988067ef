"""`python -m app`: the `willbuy` command."""

from app.cli import main

if __name__ == "__main__":
    main()
