"""The original LLaVA layout (haotian-liu/LLaVA): read, and converted to and from transformers'.

- `names`: what a tensor is called in each layout.
- `settings`: what LLaVA's config says, and the same in transformers' words.
- `tensors`: reading a checkpoint file by file, writing it shard by shard.
- `original`: a folder of LLaVA's, as a BridgeVLM.
- `convert`: one layout to the other, tensors bit for bit.
"""
