"""Offline training: from logs of past sessions to the artifact that the service loads."""
