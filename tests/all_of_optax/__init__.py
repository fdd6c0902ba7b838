"""Every name that optax exports: what runs through fitopt, how, and what is no matter for it."""
