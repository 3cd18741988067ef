"""What operators see: metrics, log, traces and health."""
