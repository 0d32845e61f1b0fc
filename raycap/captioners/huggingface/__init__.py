"""Captions by models that transformers knows, in this process: `--model smolvlm`.

options.py      what the user chooses, and what travels to the workers
files.py        which model exactly: digests, revisions
loading.py      the model and its processor, and what can be wrong with them
dialects.py     how a family is asked
intakes.py      the pixels that a family's processor would make
drawing.py      which token comes next, and how sure the model is of it
budget.py       how many pictures go into a batch
captioner.py    pictures -> captions
given_words.py  how likely the words of given captions are, for fine-tuning
fine_tuned.py   the folder of a captioner that was fine-tuned: an adapter and its base model
"""
