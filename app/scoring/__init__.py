"""From the body of an event to its stored score: validation, micro-batches, the fold, model loading and rebuilds."""
