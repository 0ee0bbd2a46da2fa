"""From a prompt's tokens to its route: probes, signals, scores, and what is kept to make them."""
