"""What every trainer of bridge is made of, whatever it trains.

    records.py       files, folders, tables, shards and `datasets`, to rows with pictures
    order.py         which rows are in which step
    optimization.py  learning rate over time, what decays, averaged weights
    lora.py          low-rank updates beside linear layers
    processes.py     one process or several, in which precision
    loop.py          the steps, from the first or from where a run stopped
    run_state.py     checkpoint, log and curve: a run that stopped goes on to the same losses

`bridge.train_vlm` (`vlm/train/`) and `bridge.train_clip` (`contrastive/train/`) are the trainers.
"""
