"""Pure policies: time and state in, decision out."""
