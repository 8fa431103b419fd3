"""Networks as plain torch modules, one file each."""
