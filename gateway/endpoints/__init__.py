"""One modality, one file: how to read its request, its reply and its usage. Pure."""
