"""Where events come from: one file per source."""
