"""The devices a process uses, and checkpoints."""
