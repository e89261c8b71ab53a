"What several test files share: the embedded base (loaded once), and toy bases and heads that stand in for others."
import pytest
import torch

from smoldiff.agent import HybridSmolLM
from smoldiff.base import load_base
from smoldiff.head import SchemaDiffusionHead, head_config


@pytest.fixture(scope="session")
def base():
    "The embedded base, on the CPU."
    return load_base("embedded", device="cpu")


def save_toy_base(folder, tokenizer, seed=0, layers=2, width=32, context=1024):
    "A Llama of two small layers with random weights and a real tokenizer, as a local folder."
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=context, tie_word_embeddings=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_toy_base(base):
    "A function of folder and options that writes a toy base."
    return lambda folder, **options: save_toy_base(folder, base.tokenizer, **options)


@pytest.fixture(scope="session")
def toy_folder(make_toy_base, tmp_path_factory):
    "Folder of a toy base."
    return make_toy_base(tmp_path_factory.mktemp("toy") / "base")


@pytest.fixture(scope="session")
def toy(toy_folder):
    "A toy base, loaded from its folder."
    return load_base(str(toy_folder), device="cpu")


def tiny_head(base, seed=0, **options):
    "An untrained head, small enough for a test."
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = {"width": 32, "depth": 1, "heads": 4, **options}
        return SchemaDiffusionHead(head_config(base, **shape), base.embedding.weight)


@pytest.fixture(scope="session")
def make_head(): return tiny_head


@pytest.fixture(scope="session")
def head_folder(base, tmp_path_factory):
    "Folder of an untrained head for the embedded base."
    folder = tmp_path_factory.mktemp("heads") / "embedded"
    HybridSmolLM(base, tiny_head(base).eval()).save_pretrained(folder)
    return folder
