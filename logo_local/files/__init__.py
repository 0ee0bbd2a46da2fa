"""Model and adapter files: find them, check them, and cache the results."""
