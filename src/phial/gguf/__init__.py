"""GGUF: the strict container reader and writer, and the block formats in numpy. Modules are imported by name."""
