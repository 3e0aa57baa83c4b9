"""Proofs about a model: how well it predicts a text, and how far it is from another model.

Evaluation knows no engine: what it measures is passed in as an object with a small face (perplexity.LanguageModel).
"""
