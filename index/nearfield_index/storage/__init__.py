"""What survives a crash: the row store, immutable files and the manifest that names them."""
