"""Planted bugs: small realistic faults in the code, and a program that tells how many of them the tests catch."""
