"""How good poses are."""
