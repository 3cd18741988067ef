"""From logs to prepared sessions to tensors."""
