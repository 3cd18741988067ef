"""Hooks of mkdocs: pages that are made from the code."""
