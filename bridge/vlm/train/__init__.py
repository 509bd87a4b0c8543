"""Training a bridge, in LLaVA's two stages. `bridge.train_vlm` is the way in.

    data.py           files, folders and tables, to pictures and turns
    batches.py        turns to ids and labels
    feature_cache.py  pictures to the tower's states, kept on disk
    trainable.py      which parameters are trained, in which precision, and the loss
    options.py        every setting, and `bridge train-vlm`
    samples.py        what the model answers on the way
    run.py            a step, and all before and after the loop of them (`bridge/training`)

After Liu et al., "Visual Instruction Tuning" (2023) and "Improved Baselines with Visual
Instruction Tuning" (2023).
"""
