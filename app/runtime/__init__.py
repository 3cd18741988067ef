"""What any service needs and no event knows of: HTTP protocol limits, drain, deadlines, caches, the embedded Redis."""
