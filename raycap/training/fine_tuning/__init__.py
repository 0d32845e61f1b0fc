"""Fine-tuning of Hugging Face captioners: `raycap train DATA --model smolvlm`.

setup.py        what a run needs, and which options do not apply
pictures.py     pictures of all sizes with their captions; the order of an epoch
adapter.py      the matrices beside the layers of a model (LoRA, by peft)
step.py         one step
validation.py   loss and captions after an epoch
loop.py         a whole run, in the order in which things happen
dry_run.py      what a run would be
"""
