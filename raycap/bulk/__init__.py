"""The table job: every picture of a source through a model, into a table with one row for each.

`run.run_job` shows the steps in their order.
"""
