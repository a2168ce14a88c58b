"""How good poses are: metrics, error profiles, and the commands that print them."""
