"""From raw text to token shards: sources, cleaning, deduplication, quality, decontamination, synthesis, mixing.

Every stage is a list of datatrove steps that its executors run, here or on many machines; phial.data.pipeline runs one.
Needs the `data` extra.
"""
