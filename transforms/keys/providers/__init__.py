"""Where root secrets come from: one file per provider."""
