"""Clips to tars: plain WebDataset shards, an index that finds every byte of them again, and label files. No torch."""
