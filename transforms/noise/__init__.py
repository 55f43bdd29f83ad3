"""Noise: exact tables, and draws that a key and an event determine."""
