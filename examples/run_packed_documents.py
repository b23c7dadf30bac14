"""Three documents packed into one sequence: the result of each is that of the document alone."""

from pathlib import Path

import torch

import attncc

device = "cuda" if torch.cuda.is_available() else "cpu"
lengths = [70, 120, 66]
total = sum(lengths)
doc = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths)).int()[None].to(device)
q = torch.randn(1, total, 8, 128, dtype=torch.bfloat16, device=device)
k, v = (torch.randn(1, total, 2, 128, dtype=torch.bfloat16, device=device) for _ in range(2))

packed = attncc.compile(Path(__file__).with_name("packed_documents.attn"), q_heads=8, kv_heads=2)
alone = attncc.compile(Path(__file__).with_name("llama3_8b.attn"), q_heads=8, kv_heads=2)
together = packed(q, k, v, doc_q=doc, doc_kv=doc)
apart = torch.cat([alone(*x) for x in zip(*(t.split(lengths, dim=1) for t in (q, k, v)))], dim=1)
print("largest difference:", (together.float() - apart.float()).abs().max().item())
