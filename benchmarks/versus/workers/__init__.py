"""Programs that run in separate processes, so that their time and memory can be measured. See protocol.py."""
