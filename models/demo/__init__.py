"""The demo: adapters for SmolLM2-135M-Instruct and prompts to try them on; see manifest.json."""
