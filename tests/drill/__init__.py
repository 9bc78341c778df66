"""The drill: a system of its own, load, seeded faults, and books that are balanced from three independent logs."""
