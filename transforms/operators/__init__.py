"""One operator, one file, one name."""
