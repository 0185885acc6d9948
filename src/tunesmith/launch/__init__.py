"""Starting a run elsewhere: the scripts of its jobs, and the scheduler that takes them."""
