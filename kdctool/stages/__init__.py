"""The verbs: one file and one public `run` per command. The only room that knows every other."""
