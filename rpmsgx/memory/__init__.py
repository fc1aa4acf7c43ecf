"""Where bytes live and how addresses translate: regions, address spaces, carveouts."""
