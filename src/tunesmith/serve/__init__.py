"""The HTTP server: models of one base, asked by request, and the thread that runs them."""
