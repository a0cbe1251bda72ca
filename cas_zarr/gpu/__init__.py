"""Hashing, encoding and decoding of chunks that lie in the memory of a GPU."""
