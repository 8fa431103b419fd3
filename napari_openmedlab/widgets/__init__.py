"""Panels: they build forms, send commands to the session and show its state."""
