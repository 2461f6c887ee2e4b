"""What hubness normalisation gains, costs and catches: ``python -m loadtests.hubness``."""
