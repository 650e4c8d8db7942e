"""Pretrain the small GPT-2 that the course ships, on the pretraining part of IMDB.

    python tools/pretrain_gpt2_mini.py --out build/pretrain --steps 6000

Resumable: run the same command again after a kill. `--out` then holds
`model/` (what is shipped: weights, tokenizer, model card), `checkpoint.pt`,
`log.jsonl`. The learning rate is flat, then falls to 0 over the last `--decay` of
the steps, so that a run may be lengthened by asking for more steps before that.
Hidden matrices are trained with Muon, embeddings and vectors with AdamW; windows
are short at first, because attention and its backward pass are the dear part.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_mini import datasets

END, PAD = "<|endoftext|>", "<|pad|>"
CONTEXT = 256


def train_tokenizer(texts, vocab_size):
    """A byte-level BPE as GPT-2's, with a pad token that is not the end token."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=vocab_size, special_tokens=[END, PAD], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=END, eos_token=END, unk_token=END,
        pad_token=PAD, padding_side="left", model_max_length=CONTEXT,
    )  # fmt: skip


def encode(tokenizer, texts):
    """One long row of token ids: every text is preceded by the end token."""
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    flat = [token for row in rows for token in [tokenizer.eos_token_id, *row]]
    return torch.tensor(flat, dtype=torch.int16)


def build_model(tokenizer, args):
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=args.width,
            n_layer=args.layers, n_head=args.width // 64, activation_function="gelu_pytorch_tanh",
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def optimizers(model, args):
    """Muon for the matrices inside the blocks, AdamW for everything else."""
    hidden = [p for p in model.transformer.h.parameters() if p.ndim == 2]
    inside = {id(p) for p in hidden}
    other = [p for p in model.parameters() if id(p) not in inside]
    muon = torch.optim.Muon(hidden, lr=args.lr, momentum=0.95, weight_decay=args.decay_weights)
    adamw = torch.optim.AdamW(
        other, lr=args.lr_other, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    return [muon, adamw]


def learning_rate_factor(step, args):
    """A short warm-up, flat, then a straight line to 0."""
    warm_up = min(1.0, (step + 1) / 100)
    left = (args.steps - step) / (args.decay * args.steps)
    return min(warm_up, left, 1.0)


@torch.no_grad()
def bits_per_character(model, stream, characters, batch=16):
    """Bits per character; each token is scored with at least half a window of past."""
    half = CONTEXT // 2
    starts = range(0, len(stream) - 1, half)
    nats = 0.0
    for i in range(0, len(starts), batch):
        for s in starts[i : i + batch]:
            begin = max(0, s - half)
            ids = stream[begin : s + half + 1].long()[None]
            # without autocast: this is the number that is reported
            logp = model(ids[:, :-1]).logits.log_softmax(-1)
            token = logp[0].gather(-1, ids[0, 1:, None])[:, 0]
            nats -= token[s - begin :].double().sum().item()
    return nats / math.log(2) / characters


def train(args):
    args.out.mkdir(parents=True, exist_ok=True)
    texts = [r.text for r in datasets.load_reviews("pretrain")]
    held_out = [r.text for r in datasets.load_reviews("prompts")[: args.held_out]]
    folder = args.out / "model"
    if (folder / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    else:
        tokenizer = train_tokenizer(texts, args.vocab)
        tokenizer.save_pretrained(folder)
    stream, test = encode(tokenizer, texts), encode(tokenizer, held_out)
    characters = sum(len(t) for t in held_out)
    torch.manual_seed(args.seed)
    model = build_model(tokenizer, args)
    steppers = optimizers(model, args)
    rates = [[g["lr"] for g in o.param_groups] for o in steppers]
    step, seconds, checkpoint = 0, 0.0, args.out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(steppers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, seconds = saved["step"], saved["seconds"]
    bar = tqdm(total=args.steps, initial=step, unit="step")
    log = (args.out / "log.jsonl").open("a")
    began, recent = time.monotonic(), []
    while step < args.steps:
        factor = learning_rate_factor(step, args)
        for optimizer, base in zip(steppers, rates, strict=True):
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * factor
        length = CONTEXT if step >= args.short * args.steps else CONTEXT // 2
        # a generator per step: a resumed run sees the windows it would have seen
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        rows = args.tokens // length
        at = torch.randint(len(stream) - length - 1, (rows,), generator=generator)
        ids = stream[at[:, None] + torch.arange(length + 1)].long()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in steppers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent.append(loss.item())
        step += 1
        bar.update()
        if step % args.every == 0 or step == args.steps:
            spent = seconds + time.monotonic() - began
            done = step == args.steps
            bpc = bits_per_character(model, test if done else test[:20_000],
                                     characters * (1 if done else 20_000 / len(test)))  # fmt: skip
            row = {"step": step, "loss": sum(recent) / len(recent), "bpc": bpc,
                   "seconds": round(spent, 1), "tokens": step * args.tokens}  # fmt: skip
            log.write(json.dumps(row) + "\n")
            log.flush()
            bar.set_postfix(loss=f"{row['loss']:.3f}", bpc=f"{bpc:.3f}")
            recent = []
            state = {"model": model.state_dict(), "step": step, "seconds": spent,
                     "optimizers": [o.state_dict() for o in steppers]}  # fmt: skip
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    model.save_pretrained(folder)
    return model, tokenizer


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", type=Path, default=Path("build/pretrain"), help="folder for everything")
    p.add_argument("--steps", type=int, default=6000, help="optimizer steps in all")
    p.add_argument("--tokens", type=int, default=4096, help="tokens per step")
    p.add_argument("--layers", type=int, default=4, help="transformer blocks")
    p.add_argument("--width", type=int, default=256, help="embedding width, a multiple of 64")
    p.add_argument("--vocab", type=int, default=4096, help="size of the byte-level BPE")
    p.add_argument("--lr", type=float, default=0.02, help="Muon's learning rate")
    p.add_argument("--lr-other", type=float, default=0.003, help="AdamW's learning rate")
    p.add_argument("--decay-weights", type=float, default=0.01, help="Muon's weight decay")
    p.add_argument("--decay", type=float, default=0.35, help="last share of steps, with falling rate")
    p.add_argument("--short", type=float, default=0.7, help="first share of steps, on half windows")
    p.add_argument("--held-out", type=int, default=400, help="reviews for bits per character")
    p.add_argument("--every", type=int, default=250, help="steps between logs and checkpoints")
    p.add_argument("--seed", type=int, default=0)
    return p.parse_args()


if __name__ == "__main__":
    train(arguments())
