"""Whether an engine, or an exported file, still gives the answers of the model that was judged."""
