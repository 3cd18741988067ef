"""Pages and tables for people: on a log (`log_page`, `log_table`), and on what predictions came to (all others)."""
