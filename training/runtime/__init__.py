"""What every stage of a run uses: its processes, its progress, and files that are replaced as a whole."""
