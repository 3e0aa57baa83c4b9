"""From token shards to a model: one training loop, its optimisers, its checkpoints, and what it is used for.

An objective is a function, data are a function of the step: whatever a run needs to go on is the number of the step and
the state of model and optimisers. Needs the `train` extra.
"""
