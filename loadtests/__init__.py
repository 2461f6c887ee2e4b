"""Load tests: real data, raw samples, metrics computed from them afterwards. ``python -m loadtests --help``."""
