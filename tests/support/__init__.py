"""What tests of several kinds share: stand-ins for the outside world."""
