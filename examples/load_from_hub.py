"""Load a record of the Hub, or a folder of a run, as an ordinary model, and see how well it knows a text.

    python examples/load_from_hub.py user/record
    python examples/load_from_hub.py user/record --revision 0123abc --text "A text of your own."
    python examples/load_from_hub.py runs/demo/record --save plain_model

The record's own Python files define the model and decode its weights, so pgolf need not be installed; torch,
transformers and zstandard are enough. Those files are run on this machine: ``trust_remote_code=True`` says that you
agree. Name a revision, and what you have read is what is run.
"""

import argparse
import math

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

TEXT = "The list is sorted in place, and the method returns None."


def main() -> None:
    """Load, describe, score, and with ``--save`` write the model as ordinary float weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", help="a repository of the Hub, or a folder")
    parser.add_argument("--revision", default="main", help="a commit, tag or branch of the repository")
    parser.add_argument("--text", default=TEXT, help="the text to score")
    parser.add_argument("--save", help="a folder for the model as plain float weights")
    asked = parser.parse_args()
    source = {"revision": asked.revision, "trust_remote_code": True}
    model = AutoModelForCausalLM.from_pretrained(asked.record, **source)
    tokenizer = AutoTokenizer.from_pretrained(asked.record, **source)
    print(f"{model.num_parameters():,} parameters, {model.config.num_hidden_layers} layers deep, {model.dtype}")
    print(f"{bits_per_byte(model, tokenizer, asked.text):.3f} bits per byte")
    if asked.save:
        model.save_pretrained(asked.save)
        tokenizer.save_pretrained(asked.save)


def bits_per_byte(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str) -> float:
    """Return the bits that the model needs for each UTF-8 byte of ``text``, which begins a document."""
    ids = tokenizer(text, return_tensors="pt").input_ids  # with the token that opens a document, which is no text
    with torch.inference_mode():
        nats_per_token = model(ids, labels=ids).loss.item()
    return nats_per_token * (ids.shape[1] - 1) / math.log(2) / len(text.encode())


if __name__ == "__main__":
    main()
