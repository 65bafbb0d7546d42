"""kdctool: from a folder of videos to a trained, measured, exported audio-visual model."""

__version__ = "0.1.0"
