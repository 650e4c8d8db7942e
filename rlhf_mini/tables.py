"""What notebooks show as HTML: tokens coloured by their KL, samples side by side.

The colour of text is left to the page and no background is opaque, so that both are
readable on light and on dark pages. As plain text each is its own description.
"""

import html

import numpy as np


class Html(str):
    """HTML that Jupyter shows; as plain text it is its own description."""

    description = ""

    def __new__(cls, text, description):
        made = super().__new__(cls, text)
        made.description = description
        return made

    def _repr_html_(self):
        return str(self)

    def __repr__(self):
        return self.description


def token_kl_html(tokens, kl, limit=None) -> Html:
    """The text, each token on a ground coloured by its log π − log π_ref.

    Orange: the policy likes the token more than the reference does; blue: less. The
    sum over the text is its sample of the KL; single tokens may be negative.

    Args:
      tokens: the text of each token, [T].
      kl: k1 = log π − log π_ref of each token in nats, [T].
      limit: nats at which the colour is full; the largest |kl| if None.
    """
    tokens, kl = list(tokens), np.asarray(kl, dtype=float)
    if kl.shape != (len(tokens),):
        raise ValueError(f"want a number per token, found {len(tokens)}, {kl.shape}")
    if not np.isfinite(kl).all():
        raise ValueError("kl: found NaN or an infinite number")
    full = limit or float(np.abs(kl).max(initial=0)) or 1.0
    spans = [
        f'<span style="{_ground(k / full)}" title="{k:+.2f} nats">'
        f"{_visible(token)}</span>"
        for token, k in zip(tokens, kl, strict=True)
    ]
    legend = " ".join(
        f'<span style="{_ground(share)};padding:0 .5em">{share * full:+.1f}</span>'
        for share in (-1.0, -0.5, 0.0, 0.5, 1.0)
    )
    most = f"{tokens[kl.argmax()].strip()!r} ({kl.max():+.2f})" if tokens else "none"
    description = (
        f"{len(tokens)} tokens coloured by log π − log π_ref; "
        f"sum {kl.sum():+.2f} nats; largest: {most}"
    )
    return Html(
        f'<figure role="group" aria-label="{html.escape(description)}" '
        'style="margin:.5em 0;max-width:44em">'
        f'<div style="line-height:1.9;white-space:pre-wrap">{"".join(spans)}</div>'
        '<figcaption style="font-size:85%;margin-top:.4em">'
        f"log π − log π_ref [nats]: {legend} · sum {kl.sum():+.2f}"
        "</figcaption></figure>",
        description,
    )


def _ground(share):
    """A see-through ground: orange above 0, blue below, clear at 0."""
    red, green, blue = (213, 94, 0) if share > 0 else (0, 114, 178)
    alpha = 0.6 * min(abs(share), 1.0)
    return f"background-color:rgba({red},{green},{blue},{alpha:.2f});border-radius:3px"


def _visible(token):
    """Escaped, with a sign for each line break, which would show no ground."""
    return html.escape(token).replace("\n", "⏎\n")


def samples_table(samples) -> Html:
    """Prompts with their continuations before and after training, and gold scores.

    Args:
      samples: dicts with the keys prompt, before, after, before_gold, after_gold.
    """
    cell = "text-align:left;vertical-align:top;padding:.4em .7em;white-space:pre-wrap"
    number = cell.replace("left", "right") + ";font-variant-numeric:tabular-nums"
    rule = "border-top:1px solid rgba(127,127,127,.4)"
    wide = cell + ";width:35%"
    heads = [("prompt", cell), ("before", wide), ("gold", number)]
    heads += [("after", wide), ("gold", number)]
    rows = []
    for s in samples:
        texts = [s["prompt"], s["before"], f"{s['before_gold']:+.2f}"]
        texts += [s["after"], f"{s['after_gold']:+.2f}"]
        columns = zip(texts, heads, strict=True)
        rows.append(
            "".join(
                f'<td style="{c};{rule}">{html.escape(t)}</td>' for t, (_, c) in columns
            )
        )
    head = "".join(
        f'<th scope="col" style="{style}">{name}</th>' for name, style in heads
    )
    body = "".join(f'<tr style="background:none">{row}</tr>' for row in rows)
    description = f"{len(rows)} prompts, each with its text before and after training"
    return Html(
        f'<table aria-label="{description}" '
        'style="border-collapse:collapse;color:inherit">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>",
        description,
    )
