"""The `willbuy` commands of training: one module a command."""
