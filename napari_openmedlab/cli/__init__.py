"""The openmedlab command."""
