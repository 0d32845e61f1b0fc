"""The acts: extract, train, tune, caption, evaluate, inspect. Only these, and the sinks, know Ray."""
