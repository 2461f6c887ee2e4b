"""Which rows may match: the filter grammar, its canonical tree and its compilation to bitmaps."""
