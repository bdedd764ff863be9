"""What transformers makes of a model directory, for weights.test.ts: keys, logits of a prompt, its greedy continuation.

  python test/model/load_saved.py FOLDER TOKENS ID...
"""

import json
import sys

import torch
from transformers import GPT2LMHeadModel


def main():
    folder, tokens, ids = sys.argv[1], int(sys.argv[2]), [int(x) for x in sys.argv[3:]]
    model, info = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    prompt = torch.tensor([ids])
    with torch.no_grad():
        logits = model(prompt).logits
    mask = torch.ones_like(prompt)
    whole = model.generate(prompt, attention_mask=mask, do_sample=False, max_new_tokens=tokens, pad_token_id=0)
    result = {"keys": {key: sorted(value) for key, value in info.items()}, "logits": logits.flatten().tolist()}
    print(json.dumps(result | {"continuation": whole[0, len(ids) :].tolist()}))


main()
