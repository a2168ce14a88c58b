"""Devices, processes, and checkpoints."""
