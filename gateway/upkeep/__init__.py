"""Background services: each has run_once() -> a typed result; one loop runs them all."""
