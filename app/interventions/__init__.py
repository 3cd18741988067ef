"""Rules that act on a score, and whether they paid."""
