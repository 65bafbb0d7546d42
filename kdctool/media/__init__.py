"""Videos to clips: listing, probing, two decoders, limits, quarantine. Knows no torch."""
