"""The ``openmedlab`` command: what the panels do, in the shell."""
