"""What both services must agree on: messages, subjects, topology, and the plumbing both run on."""
