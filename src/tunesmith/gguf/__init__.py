"""Write models and LoRA adapters as GGUF files, for llama.cpp and the programs that are built on it."""
