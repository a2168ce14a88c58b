"""Formats in and out, person records, the input pipeline. No jax."""
