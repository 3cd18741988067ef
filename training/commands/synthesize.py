"""`willbuy synthesize`: a log of a synthetic shop and its exact posterior."""

from pathlib import Path

from training.commands.console import print_line
from training.config import SynthesizeSettings
from training.synthetic import PRESETS, generate, write


def run_synthesize(out: Path, settings: SynthesizeSettings) -> None:
    """Write log and posterior, and print where they are.

    Raises:
        ValueError: there is no such shape.
    """
    if settings.shape not in PRESETS:
        raise ValueError(f"--shape: {settings.shape!r} is none of {', '.join(PRESETS)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    log = generate(PRESETS[settings.shape], settings.sessions, settings.seed)
    posterior = write(log, out)
    print_line(f"{settings.sessions:,} sessions, {log.events.height:,} events in {out}")
    print_line(f"P(purchase | prefix) of each prefix in {posterior}")
    print_line(f"\nNext: willbuy train {out} --posterior {posterior} --out model.pt")
