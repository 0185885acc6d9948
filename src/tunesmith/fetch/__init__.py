"""Resolve model references to local folders: hub, folder, `.gguf`, `pypi:`, `run:`, registry."""
