"""A model reference -> a local folder: hub, folder, `.gguf`, `pypi:`, `run:`, registry."""
