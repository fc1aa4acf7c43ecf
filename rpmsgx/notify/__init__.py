"""How the other side is woken, and how we are: doorbells."""
