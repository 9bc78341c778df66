"""Plumbing that both processes run on; holds no word of mail."""
