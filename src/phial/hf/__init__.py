"""Hugging Face folders without PyTorch: config.json, weight names, safetensors. Modules are imported by name."""
