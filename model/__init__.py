"""The model: from a page-view event to the probability of a purchase, one fold step at a time.

Training and serving both run this code and nothing else to turn events into numbers. It imports torch, NumPy and the
standard library only, and reads and writes nothing but the artifact.
"""
