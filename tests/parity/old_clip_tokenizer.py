"""The CLIPTokenizer of transformers 4.30.2, which stable-diffusion-webui 1.10.1 pins, as a process.

Runs in an environment of its own, with ftfy as the webui has it (open_clip brings it): one JSON
list of texts a line in, one list of lists of ids a line out. The argument is its folder.
"""

import json
import sys

from transformers import CLIPTokenizer

tokenizer = CLIPTokenizer.from_pretrained(sys.argv[1])
assert tokenizer.fix_text is not None
for line in sys.stdin:
    ids = tokenizer(json.loads(line), truncation=False, add_special_tokens=False)["input_ids"]
    print(json.dumps(ids), flush=True)
