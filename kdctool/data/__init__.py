"""Tars to tensors: which clip is read when, how it is decoded, and how a batch becomes model input."""
