"""Seeing inside a BridgeVLM: what soft tokens say, and where in the picture an answer comes from.

- `places`: which soft token stands for which cell of the picture.
- `words`: an answer in words, and how likely each of them was.
- `projector_lens`: the words nearest to each soft token.
- `rollouts`: what each word drew on, by attention.
- `blanks`, `occluding`: what each word loses, and what becomes of the answer, without a patch.
- `sides`: one question to several models.
- `overlays`: all that as pictures.

Everything here reads a model and changes nothing of it.
"""
