"""Writes gpt2.json and gpt2-tiny/: what transformers' GPT2LMHeadModel and torch compute, for test/model and test/train.

  pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu && pip install transformers==5.17.0
  python test/goldens/gpt2.py

Everything is computed in float64. Weights and tokens come from a formula that test/model/golden.ts has too (word), so
that the files stay small; a gradient is kept as its norm and 16 sums with random signs (sketch), whose errors have the
size of the whole gradient's error. gpt2-tiny/ is what save_pretrained writes, weights and all.
"""

import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

HERE = pathlib.Path(__file__).parent
IGNORED = -100
SKETCHES = 16

# name: L, H, C, V, positions; head widths 8, 16, 24 and 64
MODELS = {
    "small": (2, 4, 32, 257, 24),
    "deep": (3, 4, 64, 130, 48),
    "odd": (2, 2, 48, 61, 32),
    "wide": (1, 2, 128, 257, 16),
    "teacher": (4, 4, 32, 257, 24),
    "wide_teacher": (3, 2, 48, 257, 40),
}
LOWER = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
TINY = (2, 2, 16, 61, 256)


def fnv(text):
    """FNV-1a, 32 bits."""
    h = 0x811C9DC5
    for byte in text.encode():
        h = (h ^ byte) * 0x01000193 & 0xFFFFFFFF
    return h


def word(name, count):
    """32 random bits for each of 0..count-1: the integer hash of C. Wellons ("prospecting for hash functions")."""
    x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(fnv(name))
    x ^= x >> 16
    x *= np.uint32(0x7FEB352D)
    x ^= x >> 15
    x *= np.uint32(0x846CA68B)
    x ^= x >> 16
    return x


def values(name, shape, low, high):
    """Even over [low, high), rounded to float32."""
    unit = word(name, int(np.prod(shape))).astype(np.float64) / 2**32
    return torch.tensor((low + (high - low) * unit).astype(np.float32).astype(np.float64)).reshape(shape)


def tokens(name, count, vocab):
    return torch.tensor((word(name, count) % np.uint32(vocab)).astype(np.int64))


def make_config(shape):
    layers, heads, width, vocab, positions = shape
    return GPT2Config(
        n_layer=layers,
        n_head=heads,
        n_embd=width,
        vocab_size=vocab,
        n_positions=positions,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )


def make_model(name, shape, spread=0.25):
    model = GPT2LMHeadModel(make_config(shape)).double()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            center = 1.0 if key.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) else 0.0
            parameter.copy_(values(f"{name}/{key}", parameter.shape, center - spread, center + spread))
    return model.train()


def digits(x, n=9):
    if isinstance(x, torch.Tensor) and x.dim():
        return [float(f"{v:.{n}g}") for v in x.detach().flatten().tolist()]
    return float(f"{float(x):.{n}g}")


def sketch(name, gradient):
    g = gradient.detach().flatten().numpy()
    bits = word(f"sketch/{name}", g.size)
    sums = [float((g * np.where(bits >> k & 1, 1.0, -1.0)).sum()) for k in range(SKETCHES)]
    return {"norm": digits(np.sqrt((g * g).sum())), "sums": [digits(s) for s in sums]}


def gradients(model):
    return {key: sketch(key, p.grad) for key, p in model.named_parameters()}


def batch(name, vocab, B, T):
    """Inputs, targets with some rows ignored, and a weight for each row; an ignored row weighs nothing."""
    inputs = tokens(f"{name}/inputs", B * T, vocab).reshape(B, T)
    targets = tokens(f"{name}/targets", B * T, vocab)
    targets[torch.tensor(word(f"{name}/ignored", B * T) % 8 == 0)] = IGNORED
    weights = values(f"{name}/weights", [B * T], 0.0, 2.0)
    weights[torch.tensor(word(f"{name}/unweighted", B * T) % 8 == 0)] = 0.0
    weights[targets == IGNORED] = 0.0
    return inputs, targets, weights


def hidden_and_logits(model, inputs):
    hidden = model.transformer(inputs).last_hidden_state
    return hidden.flatten(0, 1), model.lm_head(hidden).flatten(0, 1)


def kl(p, log_p, log_q):
    return (p * (log_p - log_q)).sum(-1)


def parts(student, teacher, targets, options, projection):
    """Each part of the distillation loss for every row."""
    (hs, zs), (ht, zt) = student, teacher
    T, beta = options["temperature"], options["beta"]
    log_s, log_t = F.log_softmax(zs / T, -1), F.log_softmax(zt / T, -1)
    s, t = log_s.exp(), log_t.exp()
    log_m = (beta * t + (1 - beta) * s).log()
    compared = hs if projection is None else hs @ projection
    return {
        "ce": F.cross_entropy(zs, targets, ignore_index=IGNORED, reduction="none"),
        "kl": T * T * kl(t, log_t, log_s),
        "rkl": T * T * kl(s, log_s, log_t),
        "jsd": beta * kl(t, log_t, log_m) + (1 - beta) * kl(s, log_s, log_m),
        "cos": 1 - F.cosine_similarity(compared, ht, dim=-1),
    }


def run_model(name, B, T, dtype):
    model = make_model(name, MODELS[name]).to(dtype)
    inputs, targets, weights = batch(name, MODELS[name][3], B, T)
    _, logits = hidden_and_logits(model, inputs)
    losses = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    loss = (weights * losses).sum() / weights.sum()
    loss.backward()
    return model, logits.detach(), loss


def torch_errors(name, B, T, dtype, model, logits):
    """How far torch itself is off in a lower precision: the largest error of a logit, and of a gradient by its norm."""
    low, low_logits, _ = run_model(name, B, T, dtype)
    errors = [((a.grad - b.grad).norm() / b.grad.norm()).item() for a, b in zip(low.parameters(), model.parameters())]
    return {"logits": digits((low_logits - logits).abs().max(), 3), "gradient": digits(max(errors), 3)}


def golden_model(name, B, T):
    model, logits, loss = run_model(name, B, T, torch.float64)
    errors = {key: torch_errors(name, B, T, dtype, model, logits) for key, dtype in LOWER.items()}
    result = {"shape": MODELS[name], "B": B, "T": T, "loss": digits(loss, 10), "logits": digits(logits, 7)}
    return result | {"gradients": gradients(model), "errors": errors}


def golden_distill(student_name, teacher_name, **given):
    options = {"temperature": 2, "kl": 0, "rkl": 0, "jsd": 0, "beta": 0.5, "ce": 0, "cos": 0} | given
    B, T = 2, 13
    student, teacher = make_model(student_name, MODELS[student_name]), make_model(teacher_name, MODELS[teacher_name])
    widths = [MODELS[student_name][2], MODELS[teacher_name][2]]
    projection = None
    if widths[0] != widths[1]:
        projection = values("projection", widths, -0.25, 0.25).requires_grad_()
    inputs, targets, weights = batch("distill", MODELS[student_name][3], B, T)
    with torch.no_grad():
        taught = hidden_and_logits(teacher, inputs)
    rows = parts(hidden_and_logits(student, inputs), taught, targets, options, projection)
    W = weights.sum()
    means = {key: (weights * row).sum() / W for key, row in rows.items()}
    loss = sum(options[key] * mean for key, mean in means.items())
    loss.backward()
    result = {"student": student_name, "teacher": teacher_name, "options": options, "B": B, "T": T}
    result["loss"] = digits(loss, 10)
    result["parts"] = {key: digits(mean, 10) for key, mean in means.items()}
    result["gradients"] = gradients(student)
    if projection is not None and options["cos"]:
        result["gradients"]["projection.weight"] = sketch("projection.weight", projection.grad)
    return result


def curve_weights(micro, count):
    """Weights of a micro-batch's rows, some of them 0."""
    weights = values(f"curve/{micro}/weights", [count], 0.0, 2.0)
    weights[torch.tensor(word(f"curve/{micro}/unweighted", count) % 4 == 0)] = 0.0
    return weights


def golden_curve(teacher_name=None, weighted=False):
    """Ten optimizer steps of two micro-batches each, the tokens in their order."""
    B, T, accumulation, steps, vocab = 2, 16, 2, 10, 257
    student = make_model("small", MODELS["small"])
    trained = list(student.parameters())
    projection = None
    if teacher_name:
        teacher = make_model(teacher_name, MODELS[teacher_name])
        widths = [MODELS["small"][2], MODELS[teacher_name][2]]
        if widths[0] != widths[1]:
            projection = values("projection", widths, -0.25, 0.25).requires_grad_()
            trained.append(projection)
    options = {"temperature": 2, "kl": 5, "rkl": 0, "jsd": 0, "beta": 0.5, "ce": 2, "cos": 1}
    text = tokens("curve", 256, vocab)  # shorter than the ten steps: the text comes round
    settings = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weightDecay": 0.1, "gradClip": 1.0}
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": settings["weightDecay"]},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (settings["beta1"], settings["beta2"])
    optimizer = torch.optim.AdamW(groups, lr=settings["lr"], betas=betas, eps=settings["eps"])
    history = {"loss": [], "norm": []}
    for step in range(steps):
        optimizer.zero_grad()
        micros = range(step * accumulation, (step + 1) * accumulation)
        weights = [curve_weights(k, B * T) if weighted else torch.ones(B * T).double() for k in micros]
        W = sum(w.sum() for w in weights)
        total = 0.0
        for k, w in zip(micros, weights):
            at = (torch.arange(B)[:, None] + k * B) * T + torch.arange(T + 1)
            ids = text[at % len(text)]
            hidden, logits = hidden_and_logits(student, ids[:, :-1])
            targets = ids[:, 1:].flatten()
            if teacher_name:
                with torch.no_grad():
                    taught = hidden_and_logits(teacher, ids[:, :-1])
                rows = parts((hidden, logits), taught, targets, options, projection)
                losses = sum(options[key] * part for key, part in rows.items())
            else:
                losses = F.cross_entropy(logits, targets, reduction="none")
            loss = (w * losses).sum() / W
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(trained, settings["gradClip"])
        optimizer.step()
        history["loss"].append(digits(total, 10))
        history["norm"].append(digits(norm, 8))
    sizes = {"B": B, "T": T, "accumulation": accumulation, "steps": steps, "tokens": len(text)}
    return {"student": "small", "teacher": teacher_name, "options": options} | sizes | settings | history


def golden_tiny():
    """A directory as transformers writes it, and 200 tokens that it continues a prompt with."""
    model = make_model("tiny", TINY, spread=0.5).eval()
    prompt = tokens("tiny/prompt", 5, TINY[3])
    mask = torch.ones(1, 5, dtype=torch.long)
    whole = model.generate(prompt[None], attention_mask=mask, do_sample=False, max_new_tokens=200, pad_token_id=0)[0]
    with torch.no_grad():
        top = model(whole[None]).logits[0, 4:-1].topk(2).values
    margin = (top[:, 0] - top[:, 1]).min().item()
    assert margin > 1e-3, f"the continuation hangs on a margin of {margin}: choose another prompt"
    assert len(set(whole[5:].tolist())) > 10, "the continuation is monotonous"
    result = {"prompt": prompt.tolist(), "continuation": whole[5:].tolist(), "margin": digits(margin, 3)}
    result["logits"] = digits(model(prompt[None]).logits, 7)
    model.float().save_pretrained(HERE / "gpt2-tiny")
    (HERE / "gpt2-tiny" / "generation_config.json").unlink(missing_ok=True)
    return result


def main():
    torch.manual_seed(0)
    triple = {"kl": 5, "ce": 2, "cos": 1}
    sizes = [("small", 2, 11), ("deep", 1, 48), ("odd", 3, 15), ("wide", 1, 16)]
    golden = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "models": {name: golden_model(name, B, T) for name, B, T in sizes},
        "distill": [
            golden_distill("small", "teacher", **triple),
            golden_distill("small", "wide_teacher", **triple),
            golden_distill("small", "teacher", rkl=1),
            golden_distill("small", "wide_teacher", jsd=1),
            golden_distill("small", "teacher", jsd=1, beta=0.3),
            golden_distill("small", "teacher", kl=1, rkl=0.5, jsd=2, beta=0.3, ce=0.7, cos=0.4, temperature=1.5),
        ],
        "curves": {
            "pretrain": golden_curve(),
            "distill": golden_curve("teacher"),
            "projected": golden_curve("wide_teacher", weighted=True),
        },
        "tiny": golden_tiny(),
    }
    (HERE / "gpt2.json").write_text(json.dumps(golden) + "\n")


main()
