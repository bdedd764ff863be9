"""PyTorch as a rival of bench: reads one JSON request a line on stdin, answers one a line on stdout.

{"prepare": case, "sets": n} -> {"mode": "eager" | "compile", "ms": {...}} or {"absent": why}
{"run": count} -> {"ms": milliseconds of all of them, "cpu_ms": of processor time}
The mode is the faster of eager and torch.compile. Run as: python torch_rival.py THREADS cpu|cuda[:n]
"""
import json
import sys
import time

import torch
import torch._functorch.config as functorch_config
import torch.nn.functional as F
from torch_gpt2 import step_of, tokens_of

torch.manual_seed(0)
functorch_config.donated_buffer = False  # backward runs many times over one forward


def normal(dtype, *shape, std=1.0, grad=False):
    return (torch.randn(*shape) * std).to(dtype).requires_grad_(grad)


def matmul(c, dtype):
    M, N, K = c["M"], c["N"], c["K"]
    variant = c["variant"]
    if variant == "wgrad":  # M and N are the weight's
        return [normal(dtype, K, M), normal(dtype, K, N), normal(torch.float32, N, M)], lambda x, d, sum: sum.add_(torch.mm(d.t(), x))
    if variant == "dgrad":
        return [normal(dtype, M, K), normal(dtype, K, N, std=0.02)], torch.mm
    if variant == "dgrad_gelu":
        back = torch.ops.aten.gelu_backward
        return [normal(dtype, M, K), normal(dtype, K, N, std=0.02), normal(dtype, M, N)], lambda d, w, pre: back(torch.mm(d, w), pre, approximate="tanh")
    inputs = [normal(dtype, M, K), normal(dtype, N, K, std=0.02), normal(dtype, N) if variant != "head" else None]
    if variant == "gelu":
        return inputs, lambda x, w, b: F.gelu(F.linear(x, w, b), approximate="tanh")
    if variant == "residual":
        return [*inputs, normal(dtype, M, N)], lambda x, w, b, r: r + F.linear(x, w, b)
    return inputs, F.linear


def attention(c, dtype):
    if c["variant"] == "documents":
        return None
    B, H, D = c["B"], c["H"], c["D"]
    T, C = c.get("T") or c["Tq"], H * D
    heads = lambda x: x.view(B, -1, H, D).transpose(1, 2)
    if c["variant"] == "cached":
        kv = normal(dtype, B, c["Tk"], 2 * C)
        return [normal(dtype, B, T, C), kv], lambda q, kv: F.scaled_dot_product_attention(heads(q), *(heads(x) for x in kv.split(C, dim=2))).transpose(1, 2).reshape(B, T, C)
    mix = lambda qkv: F.scaled_dot_product_attention(*(heads(x) for x in qkv.split(C, dim=2)), is_causal=True).transpose(1, 2).reshape(B, T, C)
    return [normal(dtype, B, T, 3 * C, grad=True)], mix


def layernorm(c, dtype):
    C = c["C"]
    inputs = [normal(dtype, c["R"], C, grad=True), normal(dtype, C, grad=True), normal(dtype, C, grad=True)]
    if c["variant"] == "residual":
        return [*inputs, normal(dtype, c["R"], C)], lambda x, w, b, r: F.layer_norm(x + r, (C,), w, b)
    return inputs, lambda x, w, b: F.layer_norm(x, (C,), w, b)


def embedding(c, dtype):
    C, T = c["C"], c["T"]
    inputs = [normal(dtype, c["V"], C, grad=True), normal(dtype, 1024, C, grad=True), tokens_of(c["V"], (c["B"], T))]
    return inputs, lambda wte, wpe, tokens: F.embedding(tokens, wte) + wpe[:T]


def losses(logits, targets, teacher, kind):
    """Sums over rows: cross-entropy; or 5 · T² KL + 2 · CE at T = 2 with a full or a cached teacher."""
    logits = logits.float()
    ce = F.cross_entropy(logits, targets, reduction="sum")
    if kind == "ce":
        return ce
    log_q = F.log_softmax(logits / 2, dim=-1)
    if kind == "kd":
        kl = F.kl_div(log_q, F.log_softmax(teacher.float() / 2, dim=-1), log_target=True, reduction="sum")
    else:
        ids, log_p = teacher
        log_q = log_q.gather(1, ids)
        rest = torch.log1p(-log_q.exp().sum(1))
        kl = (log_p.exp() * (log_p - log_q)).sum() + (0.1 * (-2.302585 - rest)).sum()
    return 5 * 4 * kl + 2 * ce


def cached_teacher(R, V):
    return torch.stack([torch.randperm(V)[:64] for _ in range(R)]), F.log_softmax(torch.randn(R, 64) * 2, dim=-1) - 0.105


def logits_loss(c, dtype):
    R, V, kind = c["R"], c["V"], c["variant"]
    inputs = [normal(dtype, R, V, std=2, grad=True), tokens_of(V, (R,)), normal(dtype, R, V, std=2) if kind == "kd" else None]
    return inputs, lambda z, y, t: losses(z, y, t, kind)


def head_loss(c, dtype):
    R, C, V, kind = c["R"], c["C"], c["V"], c["variant"]
    inputs = [normal(dtype, R, C, grad=True), normal(dtype, V, C, std=0.05, grad=True), tokens_of(V, (R,))]
    if kind == "kd":
        return [*inputs, normal(dtype, R, 1024), normal(dtype, V, 1024, std=0.05)], lambda h, w, y, th, tw: losses(F.linear(h, w), y, F.linear(th, tw), kind)
    if kind == "ce":
        return inputs, lambda h, w, y: losses(F.linear(h, w), y, None, kind)
    return [*inputs, *cached_teacher(R, V)], lambda h, w, y, *t: losses(F.linear(h, w), y, t, kind)


def head_top_k(c, dtype):
    def top(h, w):
        return F.log_softmax(F.linear(h, w).float() / 2, dim=-1).topk(c["K"])

    return [normal(dtype, c["R"], c["C"]), normal(dtype, c["V"], c["C"], std=0.05)], top


def adamw(c, dtype):
    p = normal(torch.float32, c["N"], std=0.02)
    p.grad = normal(torch.float32, c["N"], std=1e-3)
    optimizer = torch.optim.AdamW([p], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    copy = torch.empty(c["N"], dtype=torch.bfloat16) if dtype == torch.bfloat16 else None

    def step():
        optimizer.step()
        return copy.copy_(p) if copy is not None else p

    return [], step


def flat(fn, count=1):
    return lambda c, dtype: ([normal(dtype, c["N"], grad=c["op"].startswith("gelu")) for _ in range(count)], fn)


def sample(c, dtype):
    z = normal(dtype, c["R"], c["V"], std=3)
    if c["op"] == "argmax":
        return [z], lambda z: z.argmax(-1)
    if c["variant"] != "top_k50":
        return None

    def draw(z):
        top, ids = torch.topk(z / 0.8, 50)
        return ids.gather(1, torch.multinomial(top.softmax(-1), 1))

    return [z], draw


def other(dtype):
    return torch.float32 if dtype == torch.bfloat16 else torch.bfloat16


OPS = {
    "matmul": matmul,
    "column_sum": lambda c, dtype: ([normal(dtype, c["R"], c["N"]), normal(torch.float32, c["N"])], lambda x, sum: sum.add_(x.sum(0))),
    "attention": attention,
    "layernorm": layernorm,
    "gelu": flat(lambda x: F.gelu(x, approximate="tanh")),
    "add": flat(torch.add, 2),
    "cast": lambda c, dtype: ([normal(dtype, c["N"])], lambda x: x.to(other(x.dtype))),
    "dropout": flat(lambda x, r: r + F.dropout(x, 0.1), 2),
    "random_normal": flat(lambda x: x.normal_(0, 0.02)),
    "embedding": embedding,
    "loss": logits_loss,
    "head_loss": head_loss,
    "head_top_k": head_top_k,
    "cosine_loss": lambda c, dtype: ([normal(dtype, c["R"], c["C"], grad=True), normal(dtype, c["R"], c["C"])], lambda a, b: (1 - F.cosine_similarity(a, b)).sum()),
    "global_norm": flat(torch.linalg.vector_norm),
    "adamw": adamw,
    "argmax": sample,
    "sample": sample,
}


def op_of(case, sets, compiled):
    """A function of the set's number that does the case's work once; None where PyTorch has nothing like it."""
    c = {**case["axes"], "op": case["op"], "variant": case.get("variant")}
    dtype = torch.bfloat16 if case["dtype"] == "bf16" else torch.float32
    family = case["op"].removesuffix("_forward").removesuffix("_backward")
    if family not in OPS or OPS[family](c, dtype) is None:
        return None
    lives = [OPS[family](c, dtype) for _ in range(sets)]
    function = lives[0][1]
    if compiled:
        function = torch.compile(function)
    if not case["op"].endswith("_backward"):
        with_grad = family in ("adamw",)

        def forward(k):
            with torch.set_grad_enabled(with_grad):
                return (lives[k % sets][1] if family == "adamw" else function)(*lives[k % sets][0])

        return forward
    leaves = [[x for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad] for inputs, _ in lives]
    if family in ("loss", "head_loss", "cosine_loss"):  # their backward kernels start from logits or hidden states
        return lambda k: torch.autograd.grad(function(*lives[k % sets][0]), leaves[k % sets])
    outs = [function(*inputs) for inputs, _ in lives]
    seeds = [torch.randn(out.shape).to(out.dtype) for out in outs]
    return lambda k: torch.autograd.grad(outs[k % sets], leaves[k % sets], seeds[k % sets], retain_graph=True)


def seconds(run, count):
    start = time.perf_counter()
    for k in range(count):
        run(k)
    if torch.get_default_device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def prepare(request):
    case, sets = request["prepare"], request["sets"]
    best, report = None, {}
    for mode in ("eager", "compile"):
        try:
            run = step_of(case, mode == "compile") if case.get("step") else op_of(case, sets, mode == "compile")
            if run is None:
                return None, {"absent": "it has no such op"}
            run(0)
            first = seconds(run, 1)
            count = max(1, min(50, int(0.05 / first)))
            report[mode] = min(seconds(run, count) for _ in range(3 if first < 1 else 1)) / count * 1e3
        except Exception as error:  # a compiler that is missing, say: the other mode still counts
            print(f"torch {mode}: {error}", file=sys.stderr)
            continue
        if best is None or report[mode] < report[best[0]]:
            best = (mode, run)
    if best is None:
        return None, {"absent": "both modes failed"}
    return best[1], {"mode": best[0], "ms": report}


def main():
    torch.set_num_threads(int(sys.argv[1]))
    if sys.argv[2] != "cpu":
        torch.set_default_device(sys.argv[2])
    print(json.dumps({"version": torch.__version__}), flush=True)
    run = None
    for line in sys.stdin:
        request = json.loads(line)
        if "prepare" in request:
            run, answer = prepare(request)
        else:
            cpu = time.process_time()
            answer = {"ms": seconds(run, request["run"]) * 1e3, "cpu_ms": (time.process_time() - cpu) * 1e3}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
