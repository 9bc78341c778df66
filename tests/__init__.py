"""Tests: unit and property (nothing real), integration (real broker, real SMTP), e2e and chaos (both services)."""
