"""The console: HTML pages on the admin listener, an interface to its JSON API and nothing else."""
