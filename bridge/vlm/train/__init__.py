"""Training a bridge, in LLaVA's two stages. `bridge.train_vlm` is the way in.

    data.py, rows.py   files, folders and tables, to pictures and turns
    labels.py          turns to ids, and which of them are learnt
    seen.py            pictures to the tower's states, kept on disk
    order.py           which rows are in which step
    trainee.py         what is trained, as one module with a loss
    lora.py            low-rank updates of the language model
    options.py         every setting
    parts.py           which parameters are trained, and in which precision
    checkpoint.py      a run that stopped goes on as if it had not
    journal.py         loss curve, pictures of it, samples
    processes.py       one process or several, through accelerate
    loop.py, run.py    the steps, and all that comes before and after them
    command.py         `bridge train-vlm`

After Liu et al., "Visual Instruction Tuning" (2023) and "Improved Baselines with Visual
Instruction Tuning" (2023).
"""
