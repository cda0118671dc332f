"""Compiles the programs of a job for machines that need not be there: seconds, bytes, collectives and kernels."""
