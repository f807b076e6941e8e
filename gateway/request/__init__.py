"""One metered call, in order: authenticate, admit, hold, relay, meter, settle."""
