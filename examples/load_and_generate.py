"""Load a record and let it go on with a text, token by token.

    python examples/load_and_generate.py runs/demo/record
    python examples/load_and_generate.py runs/demo/record "The list is sorted"

The record may be a folder of a run or a repository of the Hub. Its own Python files define the model, so pgolf need
not be installed; torch, transformers and zstandard are enough. Those files are run on this machine:
``trust_remote_code=True`` says that you agree.
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

NEW_TOKENS = 40
PROMPT = "This module"


def main(record: str, prompt: str = PROMPT) -> None:
    """Print ``prompt`` and the 40 most probable next tokens as they are made, one after the other."""
    model = AutoModelForCausalLM.from_pretrained(record, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(record, trust_remote_code=True)
    inputs = tokenizer(prompt, return_tensors="pt")
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, streamer=streamer)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(f"usage: python {sys.argv[0]} RECORD [PROMPT]")
    main(*sys.argv[1:])
