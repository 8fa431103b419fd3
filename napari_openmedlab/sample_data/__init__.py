"""Small volumes made by the project."""
