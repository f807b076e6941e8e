"""Pure rules: bytes and values in, values out. No await, clock, environment or logging."""
