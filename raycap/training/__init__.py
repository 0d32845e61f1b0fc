"""Training of captioners.

Start with `loop.py`, which has a whole training run in the order in which things happen, and
`step.py`, which has one step. `options.py` has the options of a run. `fine_tuning/` fine-tunes
models of Hugging Face, with a loop of its own.
"""

from raycap.images.augmentation import Augmentation as Augmentation
from raycap.training.options import Distillation as Distillation
from raycap.training.options import Lora as Lora
from raycap.training.options import Measure as Measure
from raycap.training.options import Objective as Objective
from raycap.training.options import Optimiser as Optimiser
from raycap.training.options import Schedule as Schedule
from raycap.training.options import SelfCritical as SelfCritical
from raycap.training.options import Tracker as Tracker
from raycap.training.options import Train as Train
from raycap.training.options import Validation as Validation
from raycap.training.options import Workers as Workers
