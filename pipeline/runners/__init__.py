"""What differs between runners, and nothing else."""
