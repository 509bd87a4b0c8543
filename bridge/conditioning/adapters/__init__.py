"""Foreign text towers: adapters that map their states to those that a model was trained with.

``fit_adapter`` makes an ``Adapter`` of paired prompts, ``load_adapter`` reads one,
``label_swap`` says whether a tower needs one.
"""
