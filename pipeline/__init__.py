"""What runs: the job graph, sources, sinks, runners, reports and the command line."""
