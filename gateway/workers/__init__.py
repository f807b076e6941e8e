"""More than one process behind one port: a supervisor, its workers, and what they say to each other."""
