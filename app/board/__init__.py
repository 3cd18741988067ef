"""The live board, the numbers beside it, and the stream of both: read only, and shared by all who look."""
