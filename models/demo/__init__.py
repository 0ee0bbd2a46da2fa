"""The bundled model, its adapters and prompts to try them on: see manifest.json."""
