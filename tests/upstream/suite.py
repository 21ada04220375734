"""transformers' own tests of a model, on a tiny 11-layer model and on a tiny looped one.

Started by ``run_suite.py``, which provides the tests as the package ``transformers_tests``. pytest does not collect
this file by itself.
"""

import re
import unittest

import torch
from model.architectures import tiny
from transformers.models.auto import modeling_auto
from transformers_tests.generation.test_utils import GenerationTesterMixin
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, ids_tensor

from modeling_pgolf.configuration_pgolf import PGolfConfig
from modeling_pgolf.modeling_pgolf import PGolfForCausalLM, PGolfModel

# Tests that must fail (class, name; patterns), with the reason. One that passes all the same is an error.
EXCEPTIONS = {
    # Not the plain name of a parametrised test of the generation mixin, which tests nothing.
    r"ElevenLayerTest\.test_(?!generate_from_inputs_embeds$)\w*inputs_embeds": (
        "its bigram and value embeddings read token ids, which embeddings do not carry"
    ),
    r"\w+\.test_num_layers_is_small": "wants two layers for speed; ours are tested at the published depth, 11 and 17",
}

# The suite sorts models by these tables of names, not by what they can do.
modeling_auto.MODEL_MAPPING_NAMES["pgolf"] = PGolfModel.__name__
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["pgolf"] = PGolfForCausalLM.__name__


class TinyModel:
    """What the suite calls a model tester: a configuration and a batch."""

    batch_size, seq_length, is_training = 2, 7, True

    def __init__(self, system):
        self.config = tiny(system)
        self.vocab_size = self.config.vocab_size
        self.hidden_size = self.config.hidden_size
        self.num_attention_heads = self.config.num_attention_heads
        self.num_hidden_layers = self.config.num_hidden_layers

    def get_config(self):
        return PGolfConfig(**self.config.to_dict())

    def prepare_config_and_inputs_for_common(self):
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        # Padding on the left. The suite's own random masks have holes inside the text, which bigram and smear gate
        # of the 11-layer line do not skip: they read the position before, whatever the mask says of it.
        mask = torch.ones_like(ids)
        mask[0, :2] = 0
        return self.get_config(), {"input_ids": ids, "attention_mask": mask}


class CommonTests(ModelTesterMixin, GenerationTesterMixin):
    all_model_classes = (PGolfModel, PGolfForCausalLM)

    def setUp(self):
        self.model_tester = TinyModel(self.system)

    def test_config(self):
        ConfigTester(self, config_class=PGolfConfig, hidden_size=256, num_blocks=12).run_common_tests()


class ElevenLayerTest(CommonTests, unittest.TestCase):
    system = "414"


class LoopedTest(CommonTests, unittest.TestCase):
    system = "1493"


def expect_failures(tests):
    """Mark the tests of a class that the table names."""
    for name in unittest.defaultTestLoader.getTestCaseNames(tests):
        if any(re.match(pattern, f"{tests.__name__}.{name}") for pattern in EXCEPTIONS):
            setattr(tests, name, unittest.expectedFailure(getattr(tests, name)))


expect_failures(ElevenLayerTest)
expect_failures(LoopedTest)
