"""Training and adapting a CLIP. `bridge.train_clip` is the way in.

options.py     every setting, and `bridge train-clip`
recipe.py      what options cannot say: rows without end, a further loss, an optimizer
pairs.py       rows as pictures with captions, and batches of them, read ahead
trainee.py     which parameters are trained, in which precision, and the towers' pass
kept_states.py what a locked image tower makes of each picture, computed once
evaluation.py  retrieval while it trains
saving.py      the result as a folder, its card, and weights between two models
run.py         a step, and all before and after the loop of them (`bridge/training`)
"""
