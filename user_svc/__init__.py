"""Registers users over REST and asks for their welcome mails."""
