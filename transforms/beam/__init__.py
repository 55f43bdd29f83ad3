"""The only place in transforms that imports Beam."""
