"""Keys: where they come from, how they are derived, and what is computed under them."""
