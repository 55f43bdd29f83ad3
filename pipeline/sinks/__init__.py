"""Where events go to: one file per sink."""
