"""The engine: collections of points with vectors and attributes, durable and searchable, with no web in it.

Open a data directory through :class:`nearfield_index.engine.Engine`; everything else is found by folder name.
"""
