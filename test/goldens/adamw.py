"""Writes adamw.json: five steps of torch.optim.AdamW after clip_grad_norm_, for test/ops/optim.test.ts.

  pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu && python test/goldens/adamw.py
"""

import json
import pathlib

import torch

STEPS, DECAYING, PLAIN = 5, 12, 7
OPTIONS = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weightDecay": 0.1, "maxNorm": 1.0}
RATES = [3e-3, 2e-3, 1e-3, 5e-4, 1e-4]


def main():
    generator = torch.Generator().manual_seed(1)
    parts = [torch.nn.Parameter(torch.randn(n, generator=generator)) for n in (DECAYING, PLAIN)]
    groups = [{"params": [p], "weight_decay": d} for p, d in zip(parts, (OPTIONS["weightDecay"], 0.0))]
    betas = (OPTIONS["beta1"], OPTIONS["beta2"])
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=OPTIONS["epsilon"], foreach=False)
    golden = {"torch": torch.__version__, "options": OPTIONS, "decayCount": DECAYING, "rates": RATES}
    golden["params"] = torch.cat([p.detach() for p in parts]).tolist()
    golden["steps"] = []
    for step, rate in enumerate(RATES):
        # Step 3 has a small norm, which is not clipped.
        scale = 0.01 if step == 3 else 1.0
        grads = [scale * torch.randn(p.shape, generator=generator) for p in parts]
        for p, g in zip(parts, grads):
            p.grad = g.clone()
        norm = torch.nn.utils.clip_grad_norm_(parts, OPTIONS["maxNorm"], foreach=False)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        state = [optimizer.state[p] for p in parts]
        golden["steps"].append(
            {
                "grads": torch.cat(grads).tolist(),
                "norm": norm.item(),
                "params": torch.cat([p.detach() for p in parts]).tolist(),
                "m": torch.cat([s["exp_avg"] for s in state]).tolist(),
                "v": torch.cat([s["exp_avg_sq"] for s in state]).tolist(),
            }
        )
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(golden) + "\n")


main()
