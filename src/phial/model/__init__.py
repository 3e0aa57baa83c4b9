"""The PyTorch side: the models as they are trained, checked and converted. Running a GGUF file needs none of it."""
