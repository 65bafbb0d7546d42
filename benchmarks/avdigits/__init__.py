"""AV-Digits: a small audio-visual benchmark of spoken and handwritten digits, protocol version 2."""
