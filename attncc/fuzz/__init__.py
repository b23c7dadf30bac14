"""Generated specs, and the comparison of everything that can run them."""
