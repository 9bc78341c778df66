"""Sends the welcome mails that the queue asks for."""
