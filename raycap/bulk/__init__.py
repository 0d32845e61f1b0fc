"""How a whole pile of pictures goes through a model, each exactly once: what extract and caption share."""
