"""The live board, the statistics, and the stream of both: read only; one reading serves all pollers of a replica."""
