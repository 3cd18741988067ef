"""Reference pages written from the code: `make reference` rewrites them, tests/docs fails where one differs."""
