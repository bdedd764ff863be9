"""GPT-2 in plain PyTorch and whole training steps of it, as a careful user writes them: fused attention, fused AdamW, bf16 by autocast."""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, heads, width):
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.mlp_proj = nn.Linear(4 * width, width)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.heads, C // self.heads).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).split(C, dim=2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(mixed.transpose(1, 2).reshape(B, T, C))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    def __init__(self, layers, heads, width, vocab, positions):
        super().__init__()
        self.wte = nn.Embedding(vocab, width)
        self.wpe = nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(Block(heads, width) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        for name, p in self.named_parameters():
            if p.dim() < 2:
                continue
            nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers) if name.endswith("proj.weight") else 0.02)

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)  # the head is tied


def tokens_of(vocab, shape):
    """Zipf's law, as text has it: id k with the probability 1 / ((k + 1) ln V)."""
    return (vocab ** torch.rand(shape)).long().sub(1).clamp(0, vocab - 1)


def loss_of(student, teacher, tokens, targets):
    """Cross-entropy; with a teacher DistilBERT's 5 · T² KL + 2 · CE at T = 2, without its cosine."""
    logits = student(tokens).float().flatten(0, 1)
    ce = F.cross_entropy(logits, targets.flatten())
    if teacher is None:
        return ce
    with torch.no_grad():
        wanted = F.log_softmax(teacher(tokens).float().flatten(0, 1) / 2, dim=-1)
    kl = F.kl_div(F.log_softmax(logits / 2, dim=-1), wanted, log_target=True, reduction="batchmean")
    return 5 * 4 * kl + 2 * ce


def step_of(case, compiled):
    """One optimizer step; with `compiled`, forward and loss go through torch.compile and the optimizer does not."""
    step = case["step"]
    student = GPT2(**step["config"])
    teacher = GPT2(**step["teacher"]).eval() if step.get("teacher") else None
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    lossy = torch.compile(loss_of) if compiled else loss_of
    shape = (step["B"], step["T"])
    tokens, targets = (tokens_of(step["config"]["vocab"], shape) for _ in range(2))

    def run(_):
        with torch.autocast(torch.get_default_device().type, torch.bfloat16, enabled=case["dtype"] == "bf16"):
            loss = lossy(student, teacher, tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    return run
