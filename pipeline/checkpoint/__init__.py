"""What a job over a stream remembers between slices: how far it has come, and the rows of windows that are still open."""
