"""Tests of the dashboard in a real Chromium, against a real service with a real Valkey."""
