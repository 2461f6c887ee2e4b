"""Hubness normalisation of a collection: banks, fits as jobs, normalised search, a monitor for hubs as they arrive."""
