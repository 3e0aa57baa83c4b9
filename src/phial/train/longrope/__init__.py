"""LongRoPE (arXiv 2402.13753): a model of a short context becomes one of a long one; extend.py is the whole of it."""
