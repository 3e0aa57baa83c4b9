"""What joins the stages: token shards handed to training, and whole recipes from text to a model file."""
