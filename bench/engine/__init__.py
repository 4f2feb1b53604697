"""The job engine beside its peers, on the same servers in the same run: ``python -m bench.engine --help``."""
