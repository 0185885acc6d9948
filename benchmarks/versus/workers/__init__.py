"""What runs in a process of its own, so that its time and memory are its own. See protocol.py."""
