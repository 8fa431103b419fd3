"""Files to volumes and labels, and back."""
