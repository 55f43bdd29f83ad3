"""Event schemas: one tree for every schema language."""
