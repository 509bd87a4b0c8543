"""Seeing inside a BridgeVLM: what soft tokens say, and where in the picture an answer comes from.

- `pictures`: which soft token stands for which cell of the picture, and heat or words laid over it.
- `answers`: an answer in words, how likely each of them was, and one question to several models.
- `lens`: the words nearest to each soft token.
- `rollout`: what each word drew on, by attention.
- `occlusion`: what each word loses, and what becomes of the answer, without a patch.

Everything here reads a model and changes nothing of it.
"""
