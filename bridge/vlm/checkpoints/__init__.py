"""The original LLaVA layout (haotian-liu/LLaVA): read, and converted to and from transformers'.

- `llava_layout`: what tensors and settings are called in each layout.
- `tokenizer`: the files of the text side, read and written in either.
- `original`: a folder of LLaVA's, file by file, and as a BridgeVLM.
- `convert`: one layout to the other, tensors bit for bit, shard by shard.
"""
