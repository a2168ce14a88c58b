"""Poses in files, better poses out."""
