"""From a prompt's tokens to its route: probes, signals, scores, and their caches."""
