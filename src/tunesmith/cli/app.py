"""The command line's root, to which modules add their verbs."""

from cyclopts import App

app = App(
    name="tunesmith",
    help="Fine-tune language models from one recipe, and prove whether the result is better.",
    version_flags=["--version"],
    help_format="markdown",
    help_epilogue="`--debug` (or TUNESMITH_DEBUG=1) shows the traceback of a failure.",
    suppress_keyboard_interrupt=False,
)
