"""The one door for refused events: seal, store, open."""
