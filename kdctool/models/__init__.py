"""What a user ships: the audio-visual encoder, the classifier on top of it, and how their weights come and go."""
