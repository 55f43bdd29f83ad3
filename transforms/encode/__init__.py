"""Columns to bytes: one file per format."""
