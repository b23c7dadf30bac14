"""From one IR level to the next."""
