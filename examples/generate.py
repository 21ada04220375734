"""Let a record go on with a text, token by token.

    python examples/generate.py runs/demo/record
    python examples/generate.py user/record "The list is sorted" --tokens 200 --temperature 0.8

The most probable token is taken each time, or with a temperature one is drawn. See load_from_hub.py for what a record
is and what loading one means.
"""

import argparse

from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer


def main() -> None:
    """Print the prompt and what follows as it is made."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", help="a repository of the Hub, or a folder")
    parser.add_argument("prompt", nargs="?", default="This module")
    parser.add_argument("--tokens", type=int, default=40, help="how many to make at most")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 for the most probable token each time")
    asked = parser.parse_args()
    try:
        model = AutoModelForCausalLM.from_pretrained(asked.record, trust_remote_code=True)
    except OSError as error:
        parser.error(f"{asked.record} is no folder with a record here, and the Hub gave none of that name: {error}")
    tokenizer = AutoTokenizer.from_pretrained(asked.record, trust_remote_code=True)
    inputs = tokenizer(asked.prompt, return_tensors="pt")
    drawn = {"do_sample": True, "temperature": asked.temperature} if asked.temperature else {"do_sample": False}
    streamer = TextStreamer(tokenizer, skip_special_tokens=True)
    model.generate(**inputs, max_new_tokens=asked.tokens, streamer=streamer, **drawn)


if __name__ == "__main__":
    main()
