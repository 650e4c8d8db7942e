"""A language model of 24 000 weights, made on the spot: no test needs a download."""

import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_mini import seeding
from rlhf_mini.annotators import BradleyTerryAnnotator
from rlhf_mini.gpt2.models import TokenScorer, freeze, load_policy
from rlhf_mini.gpt2.reviews import Judges, TextJudge
from rlhf_mini.gpt2.settings import Settings
from rlhf_mini.gpt2.world import World

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


@pytest.fixture(scope="session")
def judges():
    """Three judges of single letters, so that even a random answer has a score."""
    return Judges(
        *(
            TextJudge(
                name,
                make_pipeline(
                    TfidfVectorizer(analyzer="char", ngram_range=(1, n)),
                    LogisticRegression(C=10.0),
                ).fit(SENTENCES, labels),
                scale=2.0,
            )
            for name, n, labels in (
                ("gold", 1, [1, 0, 1, 0]),
                ("reviews", 2, [1, 0, 1, 0]),
                ("ratings", 1, [1, 0, 0, 1]),
            )
        )
    )


def prompt_rows(tokenizer, length=4):
    """Every stretch of `length` tokens of the made-up sentences, [N, length]."""
    rows = [tokenizer(s)["input_ids"] for s in SENTENCES]
    cut = [tuple(r[i : i + length]) for r in rows for i in range(len(r) - length)]
    return torch.tensor(sorted(set(cut)))


SMALL = {
    "prompt_length": 4, "new_tokens": 5, "comparisons": 48, "rm_batch": 16,
    "steps": 4, "batch": 16, "epochs": 2, "minibatches": 2, "eval_prompts": 6,
    "best_of": 4, "checkpoint_every": 2, "lr": 1e-3, "critic_lr": 1e-3,
    "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="session")
def make_world(model_folder, tokenizer, judges):
    """Settings → a world of tiny pieces, in the place of `build_world`."""

    def make(settings=None, **changes):
        if settings is None:
            settings = Settings(**({"model": str(model_folder)} | SMALL | changes))
        rows = prompt_rows(tokenizer)
        reference = load_policy(
            settings.model, tokenizer, max_new_tokens=settings.new_tokens
        )
        return World(
            settings=settings,
            device=torch.device("cpu"),
            tokenizer=tokenizer,
            train_prompts=rows[::2],
            eval_prompts=rows[1::2][: settings.eval_prompts],
            reference=freeze(reference),
            judges=judges,
            annotator=BradleyTerryAnnotator(slope=1.5, flip=settings.flip),
        )

    return make


@pytest.fixture(scope="session")
def reward_model(model_folder, tokenizer):
    """A reward model nobody has trained: a random head on the random body."""
    scorer = TokenScorer.from_language_model(model_folder, tokenizer, seeding.make(3))
    return freeze(scorer)
