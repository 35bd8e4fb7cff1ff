"""The model in a browser: packed.c as WebAssembly, the memory that it computes in, and the page around it."""
