"""Other programs that run models, asked in one way: plain transformers, llama.cpp, vLLM, servers with OpenAI's API."""
