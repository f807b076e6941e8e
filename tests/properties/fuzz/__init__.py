"""Fuzzing of what reads bytes from outside: `make fuzz MINUTES=10`, and briefly in `make test`."""
