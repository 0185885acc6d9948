"""The stages of a run: what each is made from, whether it is done, and where it runs."""
