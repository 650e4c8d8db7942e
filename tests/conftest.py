"""A language model of 24 000 weights, made on the spot: no test needs a download."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

SENTENCES = [
    "a good film with a good cast and a good end",
    "a bad film with a bad cast and a dull end",
    "the cast is good and the end is good",
    "the cast is bad and the film is dull",
]
END, PAD = "<|endoftext|>", "<|pad|>"


def make_tokenizer():
    """A byte-level BPE of about fifty tokens, with a pad that is not the end."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=50, special_tokens=[END, PAD], show_progress=False
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, padding_side="left"
    )


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tokenizer, tmp_path_factory):
    """A GPT-2 of 2 layers and width 32 with random weights, as a folder."""
    folder = tmp_path_factory.mktemp("tiny-gpt2")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=48, n_embd=32, n_layer=2, n_head=4,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():  # far from uniform, so that a wrong slot shows
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(8)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture()
def model(model_folder):
    return GPT2LMHeadModel.from_pretrained(model_folder)
